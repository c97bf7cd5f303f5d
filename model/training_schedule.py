"""The noise levels that are trained on. Here, not in training/, because `model.parity` holds it against the
official code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainingSchedule:
    """The 1000 noise levels that are trained on and what each one's loss weighs."""

    timesteps: torch.Tensor  # (1000,), 1000 down to nearly 0
    weights: torch.Tensor  # (1000,), mean 1

    @property
    def sigmas(self) -> torch.Tensor:
        return self.timesteps / 1000


def training_schedule(flow_shift: float, count: int = 1000) -> TrainingSchedule:
    """Evenly spread sigmas, shifted; weighted by a bell around timestep 500 that is lowered to touch 0
    (official code).
    """
    sigmas = torch.linspace(1, 0, count + 1)[:-1]
    timesteps = 1000 * flow_shift * sigmas / (1 + (flow_shift - 1) * sigmas)
    bell = torch.exp(-2 * ((timesteps - count / 2) / count) ** 2)
    bell = bell - bell.min()
    return TrainingSchedule(timesteps, bell * (count / bell.sum()))
