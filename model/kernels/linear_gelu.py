"""A linear layer with GELU fused into its matrix product, so that the widest activation is written once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import fused


def linear_gelu_reference(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(states · weightᵀ + bias) in its tanh form, (…, in) → (…, out)."""
    return F.gelu(F.linear(states, weight, bias), approximate="tanh")


def linear_gelu_cuda(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same by cuBLASLt, whose GELU is the tanh form. On a CPU this call would compute the erf form."""
    product = torch.ops.aten._addmm_activation(bias, states.flatten(0, -2), weight.t(), use_gelu=True)
    result: torch.Tensor = product.unflatten(0, states.shape[:-1])
    return result


linear_gelu = fused(
    linear_gelu_reference,
    fake=lambda states, weight, bias: states.new_empty((*states.shape[:-1], weight.shape[0])),
    kernel=linear_gelu_cuda,
)
