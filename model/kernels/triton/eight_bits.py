"""Rows scaled to 8 bits, optionally behind GELU: one read, one write of half or a quarter as many bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.eight_bits import EIGHT_BITS, LARGEST, SMALLEST_PEAK
from model.kernels.triton.launch import block_of

WIDE_WARPS = 16
"""The widest rows, a feed-forward's inner ones, are 13,824 values: then 32 of each thread."""


@triton.jit
def _rows_to_eight_bits_kernel(
    states,
    bits_out,
    scale_out,
    GELU: tl.constexpr,
    LARGEST_VALUE: tl.constexpr,
    SMALLEST: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    values = tl.load(states + row * WIDTH + channels, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # tanh(x) = 2 · sigmoid(2x) − 1, so x/2 · (1 + tanh(y)) = x · sigmoid(2y)
        values *= tl.sigmoid(1.5957691216057308 * (values + 0.044715 * values * values * values))
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), SMALLEST) / LARGEST_VALUE
    tl.store(scale_out + row, scale)
    tl.store(bits_out + row * WIDTH + channels, (values / scale).to(tl.float8e4nv), mask=inside)


def launch_rows_to_eight_bits(states: torch.Tensor, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See `model.kernels.eight_bits.rows_to_eight_bits_reference`."""
    states = states.contiguous()
    width = states.shape[-1]
    bits = states.new_empty(states.shape, dtype=EIGHT_BITS)
    scale = states.new_empty((*states.shape[:-1], 1), dtype=torch.float32)
    _rows_to_eight_bits_kernel[(states.numel() // width,)](
        states,
        bits,
        scale,
        GELU=gelu,
        LARGEST_VALUE=LARGEST,
        SMALLEST=SMALLEST_PEAK,
        WIDTH=width,
        BLOCK=block_of(width),
        num_warps=WIDE_WARPS,
    )
    return bits, scale
