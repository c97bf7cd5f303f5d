"""Matrix products in 8 bits (e4m3), with a scale for each row of both sides.

Weights are stored so. The other side is brought to 8 bits as it comes: a row's largest value becomes e4m3's
largest, so each value keeps 4 significant bits whatever the other rows are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import fused, triton_kernel

EIGHT_BITS = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest e4m3 number."""

SMALLEST_PEAK = 1e-12
"""A row of zeros is divided by this, and stays zeros."""


def rows_to_eight_bits_reference(states: torch.Tensor, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The states or their GELU (tanh form), (…, D) → (…, D) in e4m3 and scales (…, 1) in fp32."""
    values = F.gelu(states.float(), approximate="tanh") if gelu else states.float()
    scale = values.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_PEAK) / LARGEST
    return (values / scale).to(EIGHT_BITS), scale


def eight_bit_product_reference(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(left · scale) · (weight · scale)ᵀ + bias, summed in fp32: (…, in) and (out, in) → (…, out) in `dtype`.

    Scales are (…, 1) and (out, 1).
    """
    product = F.linear(left.float(), weight.float())
    return (product * left_scale * weight_scale.float().flatten() + bias.float()).to(dtype)


def eight_bit_product_cuda(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same on the 8-bit units of the GPU, which writes bf16 if each row has its scale.

    Sums are kept in fewer bits between the units' steps, as is usual for inference: it is twice as fast.
    """
    product = torch._scaled_mm(
        left.flatten(0, -2),
        weight.t(),
        scale_a=left_scale.flatten(0, -2),
        scale_b=weight_scale.float().reshape(1, -1),
        bias=bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    result: torch.Tensor = product.unflatten(0, left.shape[:-1]).to(dtype)
    return result


rows_to_eight_bits = fused(
    rows_to_eight_bits_reference,
    fake=lambda states, gelu: (
        states.new_empty(states.shape, dtype=EIGHT_BITS),
        states.new_empty((*states.shape[:-1], 1), dtype=torch.float32),
    ),
    kernel=triton_kernel("eight_bits", "launch_rows_to_eight_bits", rows_to_eight_bits_reference),
)
eight_bit_product = fused(
    eight_bit_product_reference,
    fake=lambda left, left_scale, weight, weight_scale, bias, dtype: left.new_empty(
        (*left.shape[:-1], weight.shape[0]), dtype=dtype
    ),
    kernel=eight_bit_product_cuda,
)
