"""RMS norm over the full width, for the queries and keys of cross-attention, which are not rotated."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import empty, fused, triton_kernel


def rms_norm_reference(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """states / rms(states) · weight over (…, D)."""
    return F.rms_norm(states, states.shape[-1:], weight, eps)


rms_norm = fused(
    rms_norm_reference,
    fake=lambda states, weight, eps: empty(states),
    kernel=triton_kernel("rms_norm", "launch_rms_norm", rms_norm_reference),
)
