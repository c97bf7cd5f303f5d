"""RMS norm: one read and one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import TOKENS, WARPS, block_of, cdiv


@triton.jit(do_not_specialize=["tokens"])
def _rms_norm_kernel(
    states,
    weight,
    out,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * PER_PROGRAM
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    gain = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        here = inside & (first + i < tokens)
        at = (first + i) * WIDTH + channels
        row = tl.load(states + at, mask=here, other=0.0).to(tl.float32)
        normed = row * tl.rsqrt(tl.sum(row * row, axis=0) / WIDTH + eps) * gain
        tl.store(out + at, normed.to(out.dtype.element_ty), mask=here)


def launch_rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `model.kernels.rms_norm.rms_norm_reference`."""
    states = states.contiguous()
    width = states.shape[-1]
    tokens = states.numel() // width
    out = torch.empty_like(states)
    _rms_norm_kernel[(cdiv(tokens, TOKENS),)](
        states,
        weight,
        out,
        tokens,
        eps,
        WIDTH=width,
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return out
