"""Latents ↔ pixels with `AutoencoderKLWan`: Wan's normalisation, exact partial decoding, the official tiling.

Outside this file, latents are always normalised with Wan's mean and std per channel. The VAE itself does not
normalise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    unpatchify,
)

from model.parallel.bands import Band
from model.vae_layers import FastCausalConv3d, normed_conv

TILE = (30, 52)
TILE_STRIDE = (15, 26)
"""Official tile and stride, rows × columns of latents. Frames that fit in one tile are coded whole."""


def encode_pixels(vae: AutoencoderKLWan, pixels: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
    """Pixels (1, 3, T, H, W) in -1..1 → the posterior's mean, normalised, (1, 16, (T+3)//4, H/8, W/8)."""
    encode = _mean_of_posterior(vae)
    ratio = _ratio(vae)
    if tiled:
        latents = blend_tiles(map(encode, tiles(pixels, ratio)), pixels, ratio, scale=1 / ratio)
    else:
        latents = encode(pixels)
    mean, std = _statistics(vae, latents)
    return (latents - mean) * (1.0 / std)  # the official code multiplies by the inverse


def decode_latents(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    *,
    keep_from: int = 0,
    tiled: bool = False,
    band: Band | None = None,
    after_chunk: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Normalised latents (1, 16, F, h, w) → pixels in -1..1 of latent frames `keep_from`.. (1, 3, T, H, W).

    T = 4·(F - keep_from), or 4·F - 3 if keep_from is 0 (the first latent is one pixel frame). With a `band`
    only its rows or columns.

    The decoder is causal, so earlier latents matter, but its last and costliest layers see only a short past.
    These layers start just early enough that every kept pixel has the same bits as when everything is
    decoded. `after_chunk` is called after each latent frame; it may raise to stop.
    """

    def decode(part: torch.Tensor) -> torch.Tensor:
        return decode_part(vae, part, keep_from=keep_from, band=band, after_chunk=after_chunk)

    if not tiled:
        return decode(latents).clamp(-1.0, 1.0)
    return blend_tiles(map(decode, tiles(latents)), latents, 1, scale=_ratio(vae)).clamp(-1.0, 1.0)


def decode_part(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    *,
    keep_from: int,
    band: Band | None = None,
    after_chunk: Callable[[], None] | None = None,
) -> torch.Tensor:
    """As `decode_latents`, of one tile or the whole, before values beyond -1..1 are cut."""
    mean, std = _statistics(vae, latents)
    latents = latents / (1.0 / std) + mean
    _onload(vae)
    chunks = []
    for chunk in _decode_chunks(vae, latents.to(vae.dtype), keep_from, band):
        chunks.append(chunk)
        if after_chunk is not None:
            after_chunk()
    return torch.cat([chunk for chunk in chunks if chunk is not None], dim=2)


def decoded_shape(vae: AutoencoderKLWan, latents: torch.Tensor, keep_from: int) -> tuple[int, ...]:
    """Shape of what `decode_part` makes of whole `latents` (1, 16, F, h, w)."""
    frames = 4 * (latents.shape[2] - keep_from) - (0 if keep_from else 3)
    sides = [_ratio(vae) * side for side in latents.shape[-2:]]
    folded = (vae.config.patch_size or 1) ** 2  # some VAEs fold pixels into channels
    return (latents.shape[0], vae.config.out_channels // folded, frames, *sides)


@torch.no_grad()
def _decode_chunks(
    vae: AutoencoderKLWan, latents: torch.Tensor, keep_from: int, band: Band | None
) -> Iterator[torch.Tensor | None]:
    """Pixels of each latent frame in turn; None for frames before `keep_from`."""
    decoder = vae.decoder
    blocks = list(decoder.up_blocks)
    # Blocks after the last temporal upsampling see 4 frames per latent and can start late.
    last_temporal = max(
        (i for i, block in enumerate(blocks) if any(_is_temporal_upsampler(m) for m in block.modules())),
        default=-1,
    )
    start = [0] * len(blocks)
    past = _frames_of_past(decoder.conv_out)
    for i in range(len(blocks) - 1, last_temporal, -1):
        past += _frames_of_past(blocks[i])
        start[i] = max(0, keep_from - -(-past // 4))
    head_start = max(0, keep_from - -(-_frames_of_past(decoder.conv_out) // 4))

    block_caches = [_Cache(block) for block in blocks]
    stem_cache, head_cache = _Cache(decoder.conv_in, decoder.mid_block), _Cache(decoder.conv_out)
    latents = vae.post_quant_conv(latents)
    for f in range(latents.shape[2]):
        stem_cache.rewind()
        x = _cached_conv(decoder.conv_in, latents[:, :, f : f + 1], stem_cache)
        x = decoder.mid_block(x, feat_cache=stem_cache.entries, feat_idx=stem_cache.index)
        for i, (block, cache, first) in enumerate(zip(blocks, block_caches, start, strict=True)):
            if f < first:
                break
            cache.rewind()
            if band is not None:
                x = band.cut(x, band.blocks[i])
            x = block(x, feat_cache=cache.entries, feat_idx=cache.index, first_chunk=f == 0)
        else:
            if f >= head_start:
                head_cache.rewind()
                if band is not None:
                    x = band.cut(x, band.head)
                x = _head(decoder, x, head_cache)
                if band is not None:
                    x = band.cut(x, band.pixels)
        if f < keep_from:
            yield None
        else:  # some VAEs fold pixels into channels
            yield x if vae.config.patch_size is None else unpatchify(x, vae.config.patch_size)


class _Cache:
    """The last frames of every causal convolution, in the form of diffusers' `feat_cache` and `feat_idx`."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        count = sum(isinstance(m, WanCausalConv3d) for module in modules for m in module.modules())
        self.entries: list[torch.Tensor | str | None] = [None] * count
        self.index = [0]

    def rewind(self) -> None:
        self.index[0] = 0


def _head(decoder: WanDecoder3d, x: torch.Tensor, cache: _Cache) -> torch.Tensor:
    """The decoder's last norm and convolution, in one of the two forms in which its layers compute."""
    if isinstance(decoder.conv_out, FastCausalConv3d):
        return normed_conv(decoder.norm_out, decoder.conv_out, x, cache.entries, cache.index)
    return _cached_conv(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), cache)


def _cached_conv(conv: WanCausalConv3d, x: torch.Tensor, cache: _Cache) -> torch.Tensor:
    """One causal convolution over a chunk, as `WanDecoder3d.forward` runs its first and its last one."""
    i = cache.index[0]
    before = cache.entries[i]
    last_two = x[:, :, -2:].clone()
    if last_two.shape[2] < 2 and isinstance(before, torch.Tensor):
        last_two = torch.cat([before[:, :, -1:], last_two], dim=2)
    out: torch.Tensor = conv(x, before)
    cache.entries[i] = last_two
    cache.index[0] += 1
    return out


def _frames_of_past(module: torch.nn.Module) -> int:
    """How many earlier frames reach a module's output through its causal convolutions, taken in series."""
    return sum(m.kernel_size[0] - 1 for m in module.modules() if isinstance(m, WanCausalConv3d))


def _is_temporal_upsampler(module: torch.nn.Module) -> bool:
    return isinstance(module, WanResample) and module.mode == "upsample3d"


def _mean_of_posterior(vae: AutoencoderKLWan) -> Callable[[torch.Tensor], torch.Tensor]:
    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return mean

    return encode


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def _ratio(vae: AutoencoderKLWan) -> int:
    return int(vae.spatial_compression_ratio)


def _onload(vae: AutoencoderKLWan) -> None:
    """Bring offloaded weights to the device, as diffusers' `apply_forward_hook` does for `decode`."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def tiles(data: torch.Tensor, in_ratio: int = 1) -> list[torch.Tensor]:
    """The official code's overlapping tiles of `data` (…, rows, columns), in its order.

    Args:
        in_ratio: data's rows per latent row (8 for pixels, 1 for latents).
    """
    return [data[..., rows, columns] for rows, columns in _tile_places(data, in_ratio)]


def blend_tiles(
    coded: Iterable[torch.Tensor], data: torch.Tensor, in_ratio: int, scale: float
) -> torch.Tensor:
    """Blend what coding the `tiles` of `data` gave, with linear ramps, exactly as the official code does.

    Args:
        scale: output rows per input row.
    """
    height, width = data.shape[-2:]
    size = [n * in_ratio for n in TILE]
    border = [int((a - b) * in_ratio * scale) for a, b in zip(TILE, TILE_STRIDE, strict=True)]
    total: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    for (rows, columns), out in zip(_tile_places(data, in_ratio), coded, strict=True):
        top, left = rows.start, columns.start
        mask = torch.minimum(
            _ramp(out.shape[-2], top == 0, top + size[0] >= height, border[0])[:, None],
            _ramp(out.shape[-1], left == 0, left + size[1] >= width, border[1])[None, :],
        ).to(out)
        if total is None or weight is None:
            shape = (*out.shape[:-2], int(height * scale), int(width * scale))
            total, weight = out.new_zeros(shape), out.new_zeros((1, 1, 1, *shape[-2:]))
        rows = slice(int(top * scale), int(top * scale) + out.shape[-2])
        columns = slice(int(left * scale), int(left * scale) + out.shape[-1])
        total[..., rows, columns] += out * mask
        weight[..., rows, columns] += mask
    if total is None or weight is None:
        raise ValueError(f"nothing to code: {height}×{width}")
    return total / weight


def _tile_places(data: torch.Tensor, in_ratio: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each tile; those at the end may be smaller."""
    height, width = data.shape[-2:]
    size = [n * in_ratio for n in TILE]
    stride = [n * in_ratio for n in TILE_STRIDE]
    return [
        (slice(top, top + size[0]), slice(left, left + size[1]))
        for top in _tile_starts(height, size[0], stride[0])
        for left in _tile_starts(width, size[1], stride[1])
    ]


def _tile_starts(length: int, size: int, stride: int) -> list[int]:
    return [s for s in range(0, length, stride) if not (s - stride >= 0 and s - stride + size >= length)]


def _ramp(length: int, at_start: bool, at_end: bool, border: int) -> torch.Tensor:
    ramp = torch.ones(length)
    slope = (torch.arange(border) + 1) / border
    if not at_start:
        ramp[:border] = slope
    if not at_end:
        ramp[-border:] = slope.flip(0)
    return ramp
