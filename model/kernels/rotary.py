"""Queries and keys of self-attention: RMS norm over the full width, then a rotation of neighbouring pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.kernels.operation import empty, fused, triton_kernel

RotaryTable = torch.Tensor
"""(N, head_dim / 2, 2) float32: cosine and sine of each pair's angle, which all heads share."""


def apply_rotary(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Rotate neighbouring pairs of `states` (B, N, heads, head_dim) in float32; dtype is kept."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(table).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2).to(states.dtype)


def norm_rotary_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    table: torch.Tensor,
    heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS-normalise and rotate queries and keys.

    Args:
        query: (B, M, D) with M ≤ N: the queries of the first M tokens.
        key: (B, N, D).
        query_weight, key_weight: (D,).
        table: the rotary table of the N tokens.

    Returns:
        (B, M, heads, head_dim) and (B, N, heads, head_dim).
    """
    rotated = []
    for states, weight in ((query, query_weight), (key, key_weight)):
        normed = F.rms_norm(states, states.shape[-1:], weight, eps).unflatten(-1, (heads, -1))
        rotated.append(apply_rotary(normed, table[: states.shape[1]]))
    return rotated[0], rotated[1]


norm_rotary = fused(
    norm_rotary_reference,
    fake=lambda query, key, query_weight, key_weight, table, heads, eps: (
        empty(query).unflatten(-1, (heads, -1)),
        empty(key).unflatten(-1, (heads, -1)),
    ),
    kernel=triton_kernel("rotary", "launch_norm_rotary", norm_rotary_reference),
)
