"""One line of the parity report."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CaseResult:
    """How far one output is from the official code's."""

    case: str
    max_abs_diff: float
    max_abs_ref: float
    limit: float
    """Largest allowed `max_abs_diff`."""
    frames_differing: float | None = None
    """Share of uint8 values that differ by more than one level; only for frames."""
    frames_limit: float = 0.0

    @property
    def passed(self) -> bool:
        """False for NaN, too."""
        if self.frames_differing is not None:
            return self.frames_differing <= self.frames_limit
        return self.max_abs_diff <= self.limit

    def line(self) -> str:
        """The case as one line of JSON."""
        return json.dumps(
            {
                "case": self.case,
                "max_abs_diff": self.max_abs_diff,
                "max_abs_ref": self.max_abs_ref,
                "frames_differing": self.frames_differing,
                "limit": self.frames_limit if self.frames_differing is not None else self.limit,
                "passed": self.passed,
            }
        )


def compare(
    case: str, ours: torch.Tensor, official: torch.Tensor, *, limit: float, relative: bool = False
) -> CaseResult:
    """Compare tensors; a `relative` limit is a share of the official output's largest magnitude.

    Raises:
        ValueError: shapes differ.
    """
    if ours.shape != official.shape:
        raise ValueError(f"{case}: shape {tuple(ours.shape)}, official {tuple(official.shape)}")
    ours, official = ours.detach().double().cpu(), official.double()
    reference = official.abs().max().item() if official.numel() else 0.0
    difference = (ours - official).abs().max().item() if official.numel() else 0.0
    return CaseResult(case, difference, reference, limit * reference if relative else limit)


def compare_frames(case: str, ours: torch.Tensor, official: torch.Tensor, *, limit: float) -> CaseResult:
    """Compare uint8 frames by the share of values that are more than one level apart.

    Raises:
        ValueError: shapes differ.
    """
    if ours.shape != official.shape:
        raise ValueError(f"{case}: shape {tuple(ours.shape)}, official {tuple(official.shape)}")
    difference = (ours.to(torch.int16) - official.to(torch.int16)).abs()
    share = (difference > 1).double().mean().item()
    return CaseResult(
        case,
        float(difference.max().item()),
        float(official.max().item()),
        limit=float("inf"),
        frames_differing=share,
        frames_limit=limit,
    )
