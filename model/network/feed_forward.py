"""diffusers' feed-forward module, with GELU in the first product's epilogue where that is possible."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from torch import nn

from model.kernels.linear_gelu import linear_gelu


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer's weights may be read without calling it.

    An 8-bit layer, an adapter, a layer that a hook casts or fetches: they do more than multiply when called.
    """
    return type(layer) is nn.Linear and not hasattr(layer, "_diffusers_hook")


def feed_forward(module: FeedForward, states: torch.Tensor) -> torch.Tensor:
    """`module(states)`, (…, D) → (…, D)."""
    first, _, last = module.net
    if not is_plain(first.proj):
        whole: torch.Tensor = module(states)
        return whole
    result: torch.Tensor = last(linear_gelu(states, first.proj.weight, first.proj.bias))
    return result
