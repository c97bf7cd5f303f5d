"""The VAE's faster layers compute what diffusers' own do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from model.vae import decode_latents, encode_pixels
from model.vae_layers import FastResidualBlock, use_fast_layers

WAN_2_1: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
WAN_2_2 = {
    **WAN_2_1,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}


def pair(config: dict[str, Any]) -> tuple[AutoencoderKLWan, AutoencoderKLWan]:
    """diffusers' own, and the same weights in the faster layers."""
    torch.manual_seed(0)
    plain = AutoencoderKLWan(**config).eval()
    for name, parameter in plain.named_parameters():
        if "gamma" in name:  # else all ones, which would hide a weight that is left out
            parameter.data.uniform_(0.5, 1.5)
    return plain, use_fast_layers(copy.deepcopy(plain))


@pytest.mark.parametrize("config", [WAN_2_1, WAN_2_2])
def test_latents_and_pixels_are_diffusers_own(config: dict[str, Any]) -> None:
    plain, fast = pair(config)
    assert any(isinstance(module, FastResidualBlock) for module in fast.modules())
    assert fast.state_dict().keys() == plain.state_dict().keys()
    ratio = plain.config.scale_factor_spatial
    video = torch.rand(1, 3, 9, 4 * ratio, 6 * ratio) * 2 - 1
    latents = torch.randn(1, 16, 4, 4, 6)
    for run in (
        lambda vae: encode_pixels(vae, video),
        lambda vae: decode_latents(vae, latents),
        lambda vae: decode_latents(vae, latents, keep_from=2),
    ):
        expected, found = run(plain), run(fast)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("config", [WAN_2_1, WAN_2_2])
def test_decoding_only_what_is_kept_changes_no_bit(config: dict[str, Any]) -> None:
    _, fast = pair(config)
    latents = torch.randn(1, 16, 7, 3, 4)
    whole = decode_latents(fast, latents)
    for keep_from in (1, 4, 6):
        kept = decode_latents(fast, latents, keep_from=keep_from)
        assert torch.equal(kept, whole[:, :, 4 * keep_from - 3 :])


def test_channels_last_gives_the_same() -> None:
    _, fast = pair(WAN_2_1)
    latents = torch.randn(1, 16, 3, 4, 4)
    expected = decode_latents(fast, latents)
    last = torch.channels_last_3d
    for parameter in fast.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=last)
    found = decode_latents(fast, latents.contiguous(memory_format=last))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_half_precision_is_normed_in_full_precision() -> None:
    plain, fast = (vae.to(torch.bfloat16) for vae in pair(WAN_2_1))
    exact, _ = pair(WAN_2_1)
    latents = torch.randn(1, 16, 3, 4, 4)
    expected = decode_latents(exact, latents)
    errors = [(decode_latents(vae, latents).float() - expected).norm() for vae in (plain, fast)]
    assert errors[1] <= 1.1 * errors[0]  # one rounding instead of three


def test_with_gradients_the_layers_are_diffusers_own() -> None:
    plain, fast = pair(WAN_2_1)
    video = torch.rand(1, 3, 5, 32, 32)
    for vae in (plain, fast):
        vae.encode(video).latent_dist.mode().square().sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert plain.encoder.conv_in.weight.grad.abs().max() > 0
