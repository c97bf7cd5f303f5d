"""The observations of the clients of `cointeract chaos`, and percentiles of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Observed:
    """What the clients have seen."""

    accepted: dict[str, str] = field(default_factory=dict)
    """Job id by idempotency key."""
    final: dict[str, str] = field(default_factory=dict)
    """Final state by job id, as first seen."""
    canceled: set[str] = field(default_factory=set)
    flipped: set[str] = field(default_factory=set)
    partial: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    calm_submits: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)
    calm_statuses: list[float] = field(default_factory=list)
    statuses: list[float] = field(default_factory=list)
    calm_cancels: list[float] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)
    webhooks: dict[str, str] = field(default_factory=dict)
    """The URL that each job named, by job id."""

    def live(self) -> list[str]:
        return [job_id for job_id in self.accepted.values() if job_id not in self.final]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
