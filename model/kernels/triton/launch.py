"""What all kernels share: a program's tokens, a token's width over threads, LayerNorm of one token."""

from __future__ import annotations

import triton
import triton.language as tl

WARPS = 8
"""Warps per program: a row of 5,120 values is 20 to 32 per thread, and several rows fit in registers."""

TOKENS = 4
"""Tokens per program. Weights and modulation, as wide as a token, are read once for so many."""


def block_of(width: int) -> int:
    """Lanes that hold one row: a power of two, as Triton's ranges must be."""
    return int(triton.next_power_of_2(width))


def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def programs(tokens: int, group: int, rows: int) -> int:
    """Programs that cover `tokens` without one that works on two modulation rows; see `place`."""
    last = tokens - (rows - 1) * group
    if last < 0:
        return cdiv(tokens, TOKENS) + rows  # rows without tokens: some programs find nothing to do
    return (rows - 1) * cdiv(group, TOKENS) + cdiv(last, TOKENS)


@triton.jit
def place(tokens, group, rows, PER_PROGRAM: tl.constexpr):
    """This program's modulation row, its first token, and the end of the row's tokens."""
    per_row = tl.cdiv(group, PER_PROGRAM)
    program = tl.program_id(0)
    row = tl.minimum(program // per_row, rows - 1)
    first = row * group + (program - row * per_row) * PER_PROGRAM
    end = tl.where(row == rows - 1, tokens, tl.minimum(tokens, (row + 1) * group))
    return row.to(tl.int64), first.to(tl.int64), end


@triton.jit
def layer_norm(states, inside, eps, WIDTH: tl.constexpr):
    """One row, float32, zero outside its width, brought to mean 0 and variance 1."""
    centered = tl.where(inside, states - tl.sum(states, axis=0) / WIDTH, 0.0)
    variance = tl.sum(centered * centered, axis=0) / WIDTH
    return centered * tl.rsqrt(variance + eps)
