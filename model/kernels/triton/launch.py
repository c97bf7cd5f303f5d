"""Parts of all kernels: which tokens a program has, the spread of a token over threads, LayerNorm."""

from __future__ import annotations

import triton
import triton.language as tl

WARPS = 8
"""Warps per program. A row of 5,120 values is then 20 to 32 per thread, so several rows fit in registers."""

TOKENS = 4
"""Tokens per program. A program reads weights and modulation, as wide as a token, once for all of them."""


def block_of(width: int) -> int:
    """The number of lanes that hold one row. Triton's ranges must be powers of two."""
    return int(triton.next_power_of_2(width))


def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def programs(tokens: int, group: int, rows: int) -> int:
    """The number of programs that cover `tokens`. No program spans two modulation rows; see `place`."""
    last = tokens - (rows - 1) * group
    if last < 0:
        return cdiv(tokens, TOKENS) + rows  # some rows have no tokens, so some programs have nothing to do
    return (rows - 1) * cdiv(group, TOKENS) + cdiv(last, TOKENS)


@triton.jit
def place(tokens, group, rows, PER_PROGRAM: tl.constexpr):
    """This program's modulation row, its first token, and the end of the tokens of that row."""
    per_row = tl.cdiv(group, PER_PROGRAM)
    program = tl.program_id(0)
    row = tl.minimum(program // per_row, rows - 1)
    first = row * group + (program - row * per_row) * PER_PROGRAM
    end = tl.where(row == rows - 1, tokens, tl.minimum(tokens, (row + 1) * group))
    return row.to(tl.int64), first.to(tl.int64), end


@triton.jit
def layer_norm(states, inside, eps, WIDTH: tl.constexpr):
    """Normalise one row to mean 0 and variance 1. The row is float32 and zero beyond its width."""
    centered = tl.where(inside, states - tl.sum(states, axis=0) / WIDTH, 0.0)
    variance = tl.sum(centered * centered, axis=0) / WIDTH
    return centered * tl.rsqrt(variance + eps)
