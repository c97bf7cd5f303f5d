"""Splits a decoder's frame into bands: the rows that each layer must see for a rank to decode its pixels.

A convolution sees a few rows beyond the one that it computes. A band therefore starts wider than its pixels,
and before each block it is cut to the rows that the remaining blocks need. The ranks exchange nothing on the
way. The first layers run on the whole frame on every rank: they are small, and their attention needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from torch import nn

from model.parallel.arrangement import share

ROWS, COLUMNS = -2, -1


@dataclass(frozen=True)
class Band:
    """One rank's part of a frame, across its longer side."""

    dim: int
    """`ROWS` or `COLUMNS`."""
    blocks: tuple[slice, ...]
    """The input of each upsampling block, as a part of the output of the block before it."""
    head: slice
    """The input of the last convolution, as a part of the last block's output."""
    pixels: slice
    """This rank's own pixels, as a part of the last convolution's output."""

    def cut(self, states: torch.Tensor, part: slice) -> torch.Tensor:
        """A part of (…, rows, columns)."""
        return states.narrow(self.dim, part.start, part.stop - part.start)


def band(vae: AutoencoderKLWan, height: int, width: int, ranks: int, rank: int) -> Band:
    """The band of `rank` in latents of height × width."""
    decoder = vae.decoder
    blocks = list(decoder.up_blocks)
    scales = [1]  # of each block's input, and of the head's
    for block in blocks:
        scales.append(scales[-1] * (1 if _upsampler(block) is None else 2))
    length = max(height, width)
    own = share(length, ranks, rank)

    def within(start: int, stop: int, scale: int) -> range:
        return range(max(0, start), min(stop, length * scale))

    pixels = range(own.start * scales[-1], own.stop * scales[-1])
    reach = _reach(decoder.conv_out)
    head = needed = within(pixels.start - reach, pixels.stop + reach, scales[-1])
    inputs = []
    for block, scale in zip(reversed(blocks), reversed(scales[:-1]), strict=True):
        upsampler = _upsampler(block)
        start, stop = needed.start, needed.stop
        if upsampler is not None:  # doubles, then convolves
            reach = _reach(upsampler)
            start, stop = (start - reach) // 2, -(-(stop + reach) // 2)
        reach = _reach(block) - (0 if upsampler is None else _reach(upsampler))
        needed = within(start - reach, stop + reach, scale)
        inputs.append(needed)
    inputs.reverse()

    parts = []
    made = range(length)  # by the layers so far
    for block, given in zip(blocks, inputs, strict=True):
        parts.append(_within(given, made))
        factor = 1 if _upsampler(block) is None else 2
        made = range(given.start * factor, given.stop * factor)
    dim = ROWS if height >= width else COLUMNS
    return Band(dim, tuple(parts), _within(head, made), _within(pixels, head))


def _within(part: range, whole: range) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _upsampler(block: nn.Module) -> nn.Module | None:
    return next((m for m in block.modules() if isinstance(m, WanResample)), None)


def _reach(module: nn.Module) -> int:
    """How many rows to either side an output row depends on, with all convolutions of a module in series."""
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    return sum((m.kernel_size[-1] - 1) // 2 for m in convolutions)
