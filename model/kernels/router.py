"""The experts' router after its first matrix product, and the experts' sum that its logits weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import fused, triton_kernel

BASE, HAND, FACE = 0, 1, 2
"""Indices into the router's logits."""


def router_logits_reference(
    hidden: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Linear(LayerNorm(SiLU(hidden))): (B, N, D) → logits (B, N, 3) in float32; `weight` is (3, D)."""
    normed = F.layer_norm(F.silu(hidden), hidden.shape[-1:], norm_weight, norm_bias, eps)
    return F.linear(normed, weight, bias).to(torch.float32)


def weighted_experts(logits: torch.Tensor, hand: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """The sum of the two experts (B, N, D), weighted by softmax(logits) over (B, N, 3).

    It is added to the base feed-forward, which has no weight of its own.
    """
    weights = logits.softmax(dim=-1).to(hand.dtype)
    return torch.addcmul(hand * weights[..., HAND, None], face, weights[..., FACE, None])


router_logits = fused(
    router_logits_reference,
    fake=lambda hidden, norm_weight, norm_bias, weight, bias, eps: hidden.new_empty(
        (*hidden.shape[:-1], weight.shape[0]), dtype=torch.float32
    ),
    kernel=triton_kernel("router", "launch_router_logits", router_logits_reference),
)
