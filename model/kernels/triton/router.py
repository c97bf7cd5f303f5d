"""The router's SiLU, LayerNorm and last linear layer: one read, three numbers written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.triton.launch import TOKENS, WARPS, block_of, cdiv, layer_norm


@triton.jit(do_not_specialize=["tokens"])
def _router_logits_kernel(
    hidden,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    tokens,
    eps,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * PER_PROGRAM
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    gain = tl.load(norm_weight + channels, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + channels, mask=inside, other=0.0).to(tl.float32)
    for i in range(PER_PROGRAM):
        here = first + i < tokens
        at = (first + i) * WIDTH + channels
        row = tl.load(hidden + at, mask=inside & here, other=0.0).to(tl.float32)
        normed = layer_norm(row * tl.sigmoid(row), inside, eps, WIDTH) * gain + shift
        for expert in tl.static_range(EXPERTS):
            toward = tl.load(weight + expert * WIDTH + channels, mask=inside, other=0.0).to(tl.float32)
            logit = tl.sum(normed * toward, axis=0) + tl.load(bias + expert).to(tl.float32)
            tl.store(out + (first + i) * EXPERTS + expert, logit, mask=here)


def launch_router_logits(
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """See `model.kernels.router.router_logits_reference`."""
    hidden, weight = hidden.contiguous(), weight.contiguous()
    experts, width = weight.shape
    tokens = hidden.numel() // width
    out = hidden.new_empty((*hidden.shape[:-1], experts), dtype=torch.float32)
    _router_logits_kernel[(cdiv(tokens, TOKENS),)](
        hidden,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        tokens,
        eps,
        EXPERTS=experts,
        WIDTH=width,
        BLOCK=block_of(width),
        PER_PROGRAM=TOKENS,
        num_warps=WARPS,
    )
    return out
