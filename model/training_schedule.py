"""The noise levels of training. They are in model/ because `model.parity` compares them with the official
code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainingSchedule:
    """The 1000 noise levels of training, and the weight of each one's loss."""

    timesteps: torch.Tensor  # (1000,), 1000 down to nearly 0
    weights: torch.Tensor  # (1000,), mean 1

    @property
    def sigmas(self) -> torch.Tensor:
        return self.timesteps / 1000


def training_schedule(flow_shift: float, count: int = 1000) -> TrainingSchedule:
    """Evenly spread sigmas, shifted, with weights from a bell around timestep 500 that is lowered to touch 0
    (official code).
    """
    sigmas = torch.linspace(1, 0, count + 1)[:-1]
    timesteps = 1000 * flow_shift * sigmas / (1 + (flow_shift - 1) * sigmas)
    bell = torch.exp(-2 * ((timesteps - count / 2) / count) ** 2)
    bell = bell - bell.min()
    return TrainingSchedule(timesteps, bell * (count / bell.sum()))
