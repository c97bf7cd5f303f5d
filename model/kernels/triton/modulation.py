"""LayerNorm, then scale and shift by modulation row, optionally after a residual sum, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import TOKENS, WARPS, block_of, layer_norm, place, programs


@triton.jit(do_not_specialize=["tokens", "group", "rows"])
def _norm_modulate_kernel(
    states,
    added,
    modulation,
    total_out,
    normed_out,
    tokens,
    group,
    rows,
    eps,
    ADDS: tl.constexpr,
    SHIFT: tl.constexpr,
    SCALE: tl.constexpr,
    VECTORS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    row, first, end = place(tokens, group, rows, PER_PROGRAM)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    vectors = modulation + (sample * rows + row) * VECTORS * WIDTH + channels
    gain = 1.0 + tl.load(vectors + SCALE * WIDTH, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(vectors + SHIFT * WIDTH, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        here = inside & (first + i < end)
        at = (sample * tokens + first + i) * WIDTH + channels
        total = tl.load(states + at, mask=here, other=0.0).to(tl.float32)
        if ADDS:
            total += tl.load(added + at, mask=here, other=0.0).to(tl.float32)
            tl.store(total_out + at, total.to(total_out.dtype.element_ty), mask=here)
        normed = layer_norm(total, inside, eps, WIDTH) * gain + shift
        tl.store(normed_out + at, normed.to(normed_out.dtype.element_ty), mask=here)


def _launch(
    states: torch.Tensor,
    added: torch.Tensor | None,
    modulation: torch.Tensor,
    vectors: tuple[int, int],
    group: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    states, modulation = states.contiguous(), modulation.contiguous()
    added = states if added is None else added.contiguous()
    batch, tokens, width = states.shape
    rows = modulation.shape[1]
    normed = torch.empty_like(states)
    total = normed if added is states else torch.empty_like(states)
    _norm_modulate_kernel[(programs(tokens, group, rows), batch)](
        states,
        added,
        modulation,
        total,
        normed,
        tokens,
        group,
        rows,
        eps,
        ADDS=added is not states,
        SHIFT=vectors[0],
        SCALE=vectors[1],
        VECTORS=modulation.shape[2],
        WIDTH=width,
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return total, normed


def launch_norm_modulate(
    states: torch.Tensor, modulation: torch.Tensor, shift: int, scale: int, group: int, eps: float
) -> torch.Tensor:
    """See `model.kernels.modulation.norm_modulate_reference`."""
    return _launch(states, None, modulation, (shift, scale), group, eps)[1]


def launch_add_norm_modulate(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    shift: int,
    scale: int,
    group: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `model.kernels.modulation.add_norm_modulate_reference`."""
    return _launch(states, added, modulation, (shift, scale), group, eps)
