"""A linear layer with its weight in 8 bits: it takes half the memory of bf16, and computes in the input's
type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_LARGEST_EXPONENT = 8
"""The largest e4m3 number is 448 = 1.75 · 2^8."""


class Fp8Linear(nn.Module):
    """y = x·Wᵀ + b with W in e4m3 and one power of two per output row.

    The weight is a uint8 buffer of e4m3 bit patterns: `from_pretrained(torch_dtype=…)` and `.to(dtype)` cast
    every floating-point tensor they find and would silently undo the saving. Powers of two survive such a
    cast unchanged.
    """

    weight: torch.Tensor
    """(out, in) uint8"""
    weight_scale: torch.Tensor
    """(out, 1)"""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(out_features, 1))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out) in the dtype of `states`."""
        weight = self.weight.view(torch.float8_e4m3fn).to(states.dtype) * self.weight_scale.to(states.dtype)
        return F.linear(states, weight, None if self.bias is None else self.bias.to(states.dtype))


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight rows (R, in) → e4m3 bits (R, in) uint8 and scales (R, 1) fp32: weight ≈ bits · scale.

    Scales are powers of two. e4m3 is a floating-point type, and a scale only moves a row away from the type's
    ends, so a power of two loses nothing against an exact maximum. Values keep 4 significant bits, so the
    relative error is at most 1/16.
    """
    weight = weight.float()
    # amax = m · 2^e with m in [0.5, 1): scaled to exponent 8 it lies in [128, 256), safely below 448.
    _, exponent = torch.frexp(weight.abs().amax(dim=1, keepdim=True))
    scale = torch.ldexp(torch.ones_like(weight[:, :1]), exponent - _LARGEST_EXPONENT)
    return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale
