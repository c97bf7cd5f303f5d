"""diffusers' feed-forward module, with GELU in the first product's epilogue or both products in 8 bits."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from torch import nn

from model.kernels.eight_bits import rows_to_eight_bits
from model.kernels.linear_gelu import linear_gelu
from model.network.fp8_linear import Fp8Linear


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer's weights may be read without calling it.

    An 8-bit layer, an adapter, a layer that a hook casts or fetches: they do more than multiply when called.
    """
    return type(layer) is nn.Linear and not hasattr(layer, "_diffusers_hook")


def feed_forward(module: FeedForward, states: torch.Tensor) -> torch.Tensor:
    """`module(states)`, (…, D) → (…, D)."""
    first, _, last = module.net
    if isinstance(first.proj, Fp8Linear) and first.proj.computes_in_fp8:
        inner = first.proj.product(*rows_to_eight_bits(states, gelu=False), states.dtype)
        result: torch.Tensor = last.product(*rows_to_eight_bits(inner, gelu=True), states.dtype)
        return result
    if not is_plain(first.proj):
        whole: torch.Tensor = module(states)
        return whole
    result = last(linear_gelu(states, first.proj.weight, first.proj.bias))
    return result
