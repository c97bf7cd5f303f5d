"""The gated residual sum after each part of a layer, including the experts' weighted sum.

`model.kernels.modulation` explains modulation rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.modulation import row_spans
from model.kernels.operation import empty, fused, triton_kernel
from model.kernels.router import weighted_experts


def gated_add_reference(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    gate: int,
    group: int,
    logits: torch.Tensor | None = None,
    hand: torch.Tensor | None = None,
    face: torch.Tensor | None = None,
) -> torch.Tensor:
    """states + gate · (added + experts), (B, N, D). `gate` is the index of one of the modulation's vectors.

    `logits` (B, T, 3), `hand` and `face` (B, T, D) belong to the first T tokens. Give all three or none.
    """
    if logits is not None and hand is not None and face is not None:
        target = hand.shape[1]
        summed = added[:, :target] + weighted_experts(logits, hand, face)
        added = summed if target == added.shape[1] else torch.cat([summed, added[:, target:]], dim=1)
    gates = modulation[:, :, gate].to(states.dtype)
    parts = [
        torch.addcmul(states[:, span], added[:, span], gates[:, row, None])
        for row, span in row_spans(states.shape[1], group, modulation.shape[1])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def gated_add_norm_reference(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    gate: int,
    group: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum states + gate · added, (B, N, D), and its LayerNorm with `weight` and `bias` (D,)."""
    total = gated_add_reference(states, added, modulation, gate, group)
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


gated_add = fused(
    gated_add_reference,
    fake=lambda states, *_: empty(states),
    kernel=triton_kernel("residual", "launch_gated_add", gated_add_reference),
)
gated_add_norm = fused(
    gated_add_norm_reference,
    fake=lambda states, *_: (empty(states), empty(states)),
    kernel=triton_kernel("residual", "launch_gated_add_norm", gated_add_norm_reference),
)
