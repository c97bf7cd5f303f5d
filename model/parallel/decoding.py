"""Latents → frames on several ranks: each decodes a band of every frame, or some of the tiles."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from model.parallel.arrangement import share
from model.parallel.bands import band
from model.parallel.collectives import Group, Purpose
from model.sampling import frames_from_pixels, levels
from model.vae import blend_tiles, decode_latents, decode_part, decoded_shape, tiles

BANDS_IN_TURN = 2
"""Bands in which one device decodes where memory is short: then encoding whole frames needs the most."""


def decode_frames(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    *,
    keep_from: int,
    tiled: bool,
    after_chunk: Callable[[], None],
    ranks: Group | None,
    in_turn: int = 1,
) -> np.ndarray | None:
    """Frames (T, H, W, 3) uint8 of latent frames `keep_from`.., on the group's first rank; None elsewhere.

    One device decodes so many bands of them `in_turn`, to hold less at once.

    Bands differ from whole frames by at most one level, because convolutions of another shape round
    differently. Tiles are those of the official code and give the same bits on any number of ranks.
    """
    if ranks is None and in_turn > 1 and not tiled:
        return _decode_in_turn(vae, latents, keep_from, after_chunk, in_turn)
    if ranks is None:
        pixels = decode_latents(vae, latents, keep_from=keep_from, tiled=tiled, after_chunk=after_chunk)
        return frames_from_pixels(pixels)
    if tiled:
        return _decode_tiles(vae, latents, keep_from, after_chunk, ranks)
    return _decode_bands(vae, latents, keep_from, after_chunk, ranks)


def _decode_in_turn(
    vae: AutoencoderKLWan, latents: torch.Tensor, keep_from: int, after_chunk: Callable[[], None], count: int
) -> np.ndarray:
    """All bands on one device."""
    made = []
    for turn in range(count):
        own = band(vae, latents.shape[-2], latents.shape[-1], count, turn)
        pixels = decode_latents(vae, latents, keep_from=keep_from, band=own, after_chunk=after_chunk)
        made.append(frames_from_pixels(pixels))
    return np.concatenate(made, axis=own.dim + 3)


def _decode_bands(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    keep_from: int,
    after_chunk: Callable[[], None],
    ranks: Group,
) -> np.ndarray | None:
    height, width = latents.shape[-2:]
    own = band(vae, height, width, ranks.size, ranks.index)
    pixels = decode_latents(vae, latents, keep_from=keep_from, band=own, after_chunk=after_chunk)
    mine = levels(pixels)  # (T, H, W, 3)
    across = own.dim + 3
    ratio = int(vae.spatial_compression_ratio)
    shapes = []
    for rank in range(ranks.size):
        shape = list(mine.shape)
        shape[across] = ratio * len(share(max(height, width), ranks.size, rank))
        shapes.append(tuple(shape))
    bands = ranks.collect(mine, shapes, Purpose.FRAMES)
    return torch.cat(bands, dim=across).cpu().numpy() if bands else None


def _decode_tiles(
    vae: AutoencoderKLWan,
    latents: torch.Tensor,
    keep_from: int,
    after_chunk: Callable[[], None],
    ranks: Group,
) -> np.ndarray | None:
    """Rank k modulo ranks decodes tile k. The first rank blends all tiles in their order."""
    parts = tiles(latents)
    mine = [torch.empty(0, dtype=vae.dtype, device=latents.device)]
    for turn in range(0, len(parts), ranks.size):
        if turn + ranks.index < len(parts):
            part = parts[turn + ranks.index]
            mine.append(decode_part(vae, part, keep_from=keep_from).flatten())
        after_chunk()  # not inside a tile, because all ranks must call it equally often
    shapes = [decoded_shape(vae, part, keep_from) for part in parts]
    counts = [sum(map(math.prod, shapes[rank :: ranks.size])) for rank in range(ranks.size)]
    collected = ranks.collect(torch.cat(mine), [(count,) for count in counts], Purpose.FRAMES)
    if not collected:
        return None
    decoded: list[torch.Tensor] = [latents] * len(parts)
    for rank, flat in enumerate(collected):
        theirs = shapes[rank :: ranks.size]
        pieces = flat.split([math.prod(shape) for shape in theirs])
        decoded[rank :: ranks.size] = [piece.view(shape) for piece, shape in zip(pieces, theirs, strict=True)]
    scale = int(vae.spatial_compression_ratio)
    return frames_from_pixels(blend_tiles(decoded, latents, 1, scale).clamp(-1.0, 1.0))
