"""Latents and pixels: the official normalisation, decoding only what is kept, the official tiling."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from model.parallel import bands
from model.parallel.bands import COLUMNS, ROWS, band
from model.parity.pipeline_cases import build_vae
from model.vae import TILE, _tile_starts, blend_tiles, decode_latents, encode_pixels, tiles
from model.vae_layers import use_fast_layers
from tests.model.official_parts import recorded, vae_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return use_fast_layers(build_vae(vae_weights()))


@pytest.fixture(scope="module")
def small_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()


def test_recorded_video_gives_the_official_latents(vae):
    cases, _ = recorded("vae_cases")
    official = cases["latents_normalised"]
    assert (encode_pixels(vae, cases["video"]) - official).abs().max() <= 1e-5 * official.abs().max()


def test_recorded_latents_give_the_official_pixels(vae):
    cases, _ = recorded("vae_cases")
    official = cases["decoded"]
    assert (
        decode_latents(vae, cases["latents_normalised"]) - official
    ).abs().max() <= 1e-5 * official.abs().max()


@pytest.mark.parametrize("keep_from", [1, 4, 9, 13, 19])
def test_decoding_only_the_kept_frames_changes_no_bit_of_them(small_vae, keep_from):
    latents = torch.randn(1, 16, 21, 4, 6, generator=torch.Generator().manual_seed(keep_from))
    everything = decode_latents(small_vae, latents)
    kept = decode_latents(small_vae, latents, keep_from=keep_from)
    assert everything.shape[2] == 81
    assert torch.equal(kept, everything[:, :, 4 * keep_from - 3 :])


def test_official_layers_need_more_past_and_still_change_no_bit(vae):
    latents = torch.randn(1, 16, 14, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode_latents(vae, latents, keep_from=11), decode_latents(vae, latents)[:, :, 41:])


def test_decoding_skips_work_for_frames_that_are_not_kept(small_vae):
    seen = []
    hook = small_vae.decoder.up_blocks[-1].register_forward_pre_hook(lambda *_: seen.append(1))
    decode_latents(small_vae, torch.zeros(1, 16, 20, 2, 2), keep_from=19)
    hook.remove()
    assert 1 < len(seen) < 10


def test_whole_decoding_equals_diffusers(small_vae):
    latents = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(small_vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(small_vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        theirs = small_vae.decode(latents / (1.0 / std) + mean).sample
    assert torch.equal(decode_latents(small_vae, latents), theirs)


def test_decoding_can_be_stopped_after_any_latent_frame(small_vae):
    calls = []

    def stop_at_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        decode_latents(small_vae, torch.zeros(1, 16, 8, 2, 2), after_chunk=stop_at_third)
    assert len(calls) == 3


def test_a_frame_no_larger_than_a_tile_is_coded_whole(small_vae):
    pixels = torch.rand(1, 3, 5, 48, 64) * 2 - 1
    assert torch.equal(encode_pixels(small_vae, pixels, tiled=True), encode_pixels(small_vae, pixels))


def test_tiles_blend_to_the_whole_where_coding_is_local():
    data = torch.randn(1, 2, 3, 70, 120, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend_tiles(tiles(data), data, 1, scale=1.0), data, atol=1e-6)
    doubled = blend_tiles(
        (part.repeat_interleave(2, -1).repeat_interleave(2, -2) for part in tiles(data)), data, 1, scale=2.0
    )
    assert torch.allclose(doubled, data.repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-6)


def test_no_tile_is_made_whose_pixels_all_lie_in_the_one_before():
    assert _tile_starts(30, TILE[0], 15) == [0]
    assert _tile_starts(46, TILE[0], 15) == [0, 15, 30]
    assert _tile_starts(45, TILE[0], 15) == [0, 15]


@pytest.mark.parametrize("size", [(20, 4), (5, 21), (3, 3)], ids=str)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_bands_of_a_frame_are_what_decoding_it_whole_gives(vae, small_vae, size, ranks):
    latents = torch.randn(1, 16, 3, *size, generator=torch.Generator().manual_seed(0))
    dim = ROWS if size[0] >= size[1] else COLUMNS
    for network in (vae, small_vae):
        whole = decode_latents(network, latents)
        bands = [
            decode_latents(network, latents, band=band(network, *size, ranks, rank)) for rank in range(ranks)
        ]
        assert max(part.shape[dim] for part in bands) - min(part.shape[dim] for part in bands) in (0, 8)
        assert (torch.cat(bands, dim=dim) - whole).abs().max() < 2e-5


@pytest.mark.parametrize("reach_missing", [False, True])
def test_nothing_that_a_band_leaves_out_reaches_its_pixels(reach_missing, monkeypatch):
    """Convolutions fill the edges of what they are given with zeros. Here with NaN, which nothing hides."""
    poisoned = build_vae(vae_weights())
    decoder = poisoned.decoder
    for convolution in [*decoder.up_blocks.modules(), decoder.conv_out]:
        if isinstance(convolution, torch.nn.Conv2d | torch.nn.Conv3d) and convolution.kernel_size[-1] == 3:
            if isinstance(convolution, torch.nn.Conv3d):  # of diffusers: pads by itself
                convolution._padding = (0, 0, 0, 0, convolution._padding[4], 0)
            else:
                convolution.padding = (0, 0)
            convolution.register_forward_pre_hook(
                lambda _, given: tuple(
                    torch.nn.functional.pad(part, (1, 1, 1, 1), value=torch.nan)
                    if isinstance(part, torch.Tensor)
                    else part
                    for part in given
                )
            )
    if reach_missing:
        first = decoder.up_blocks[0]
        reach = bands._reach
        monkeypatch.setattr(bands, "_reach", lambda module: reach(module) - (module is first))
    latents = torch.randn(1, 16, 2, 60, 40, generator=torch.Generator().manual_seed(0))
    pixels = decode_latents(poisoned, latents, band=band(poisoned, 60, 40, 3, 1))
    assert pixels.shape[-2] == 20 * 8
    untouched = ~pixels[..., 13 * 8 : -13 * 8].isnan()  # columns that no edge of the frame reaches
    assert untouched.all() != reach_missing


def test_a_band_computes_only_what_its_pixels_need(vae):
    seen = []
    hook = vae.decoder.up_blocks[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    decode_latents(vae, torch.zeros(1, 16, 1, 40, 2), band=band(vae, 40, 2, 8, 3))
    hook.remove()
    # 5 latent rows are 40 pixel rows; three residual blocks and the last convolution see 7 more.
    assert {shape[-2] for shape in seen} == {40 + 2 * 7}
