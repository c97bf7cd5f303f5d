"""A linear layer with its weight in 8 bits: it takes half the memory of bf16.

It computes in the input's type, or in 8 bits on GPUs that can; `model.fp8_choice` decides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.kernels.eight_bits import EIGHT_BITS, eight_bit_product, rows_to_eight_bits

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
    computes_in_fp8: bool = False
    """Whether the input is brought to 8 bits too, so that the product is one of 8 bits."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(out_features, 1))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out) in the dtype of `states`."""
        if self.computes_in_fp8:
            return self.product(*rows_to_eight_bits(states, gelu=False), states.dtype)
        weight = self.weight.view(EIGHT_BITS).to(states.dtype) * self.weight_scale.to(states.dtype)
        return F.linear(states, weight, self.bias.to(states.dtype))

    def product(self, bits: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What `rows_to_eight_bits` made of (…, in) → (…, out) in `dtype`, computed in 8 bits."""
        return eight_bit_product(
            bits, scale, self.weight.view(EIGHT_BITS), self.weight_scale, self.bias, dtype
        )


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
    return (weight / scale).to(EIGHT_BITS).view(torch.uint8), scale
