"""LayerNorm of tokens, then scale and shift by each token's modulation row; optionally after a residual sum.

A modulation is (B, R, K, D): K vectors in each of R rows. The first `group` tokens use row 0, the next ones
row 1, and so on; all remaining tokens use the last row. Noisy and clean tokens thus have a row each, and
speech has one per latent frame. The vectors are never copied out per token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from model.kernels.operation import empty, fused, triton_kernel


def row_spans(tokens: int, group: int, rows: int) -> Iterator[tuple[int, slice]]:
    """Each modulation row that has tokens, with the tokens."""
    for row in range(rows):
        start = row * group
        if start < tokens:
            yield row, slice(start, tokens if row == rows - 1 else min(tokens, start + group))


def norm_modulate_reference(
    states: torch.Tensor, modulation: torch.Tensor, shift: int, scale: int, group: int, eps: float
) -> torch.Tensor:
    """LayerNorm(states) · (1 + scale) + shift over (B, N, D). `shift` and `scale` are indices of vectors."""
    gains = (1 + modulation[:, :, scale]).to(states.dtype)
    shifts = modulation[:, :, shift].to(states.dtype)
    samples = []
    for sample, gain, offset in zip(states, gains, shifts, strict=True):
        parts = [
            F.layer_norm(sample[span], sample.shape[-1:], gain[row], offset[row], eps)
            for row, span in row_spans(states.shape[1], group, modulation.shape[1])
        ]
        samples.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    return samples[0].unsqueeze(0) if len(samples) == 1 else torch.stack(samples)


def add_norm_modulate_reference(
    states: torch.Tensor,
    added: torch.Tensor,
    modulation: torch.Tensor,
    shift: int,
    scale: int,
    group: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum states + added, (B, N, D), and `norm_modulate` of the sum."""
    total = states + added
    return total, norm_modulate_reference(total, modulation, shift, scale, group, eps)


norm_modulate = fused(
    norm_modulate_reference,
    fake=lambda states, *_: empty(states),
    kernel=triton_kernel("modulation", "launch_norm_modulate", norm_modulate_reference),
)
add_norm_modulate = fused(
    add_norm_modulate_reference,
    fake=lambda states, *_: (empty(states), empty(states)),
    kernel=triton_kernel("modulation", "launch_add_norm_modulate", add_norm_modulate_reference),
)
