"""The velocities of one clip's steps: the network computes some, the others are interpolated.

Euler's method adds up velocities. Over the steps of a clip they form a smooth curve, so a few points of it
give most of the sum. A skipped step first takes the velocity that the computed steps before it predict. When
the next step is computed, the skipped ones between are interpolated and the latents are corrected. Only two
or three velocities are held. diffusers' caches keep a network's inner states from step to step instead. On
the shipped checkpoint, where they save 2.2 to 2.8 times, their videos are 10 to 15 dB further from the exact
ones than where this saves 3.3 times (BENCHMARKS.md).

Each clip has a curve of its own, so a canceled clip leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from contract.params import GenerationParams
from contract.sampling import first_routed_step, noise_levels

FORETELLING_POINTS = 2
"""Computed steps that a skipped step is extrapolated from: a straight line. Higher orders overshoot."""

INTERPOLATING_POINTS = 3
"""Computed steps that a skipped step is interpolated from in the end: a parabola. The last comes after it."""


@dataclass
class VelocityCurve:
    """The velocity of one clip's latents over its steps."""

    sigmas: Sequence[float]
    """The noise level of each step, then 0."""
    jump: int
    """The first step with experts. The velocity jumps there, so nothing is interpolated across it."""
    _computed: dict[int, torch.Tensor] = field(default_factory=dict)
    """The newest computed velocities on this side of the jump, oldest first."""
    _foretold: dict[int, Mapping[int, float]] = field(default_factory=dict)
    """For each step skipped since the newest computed one: the part of each computed velocity in its own."""

    @classmethod
    def of(cls, params: GenerationParams) -> VelocityCurve:
        """A new clip's curve."""
        levels = noise_levels(params.num_inference_steps, params.flow_shift)
        return cls((*levels, 0.0), first_routed_step(levels))

    def foretell(self, step: int) -> torch.Tensor:
        """The velocity that a skipped step uses until it is interpolated, shaped like the computed ones."""
        self._cross_jump(step, computed=False)
        self._foretold[step] = parts = self._parts(list(self._computed)[-FORETELLING_POINTS:], step)
        return self._sum(parts)

    def corrected(self, latents: torch.Tensor, step: int, velocity: torch.Tensor) -> torch.Tensor:
        """Note a computed velocity. Returns the latents with the skipped steps before it corrected.

        If no step was skipped, these are the given latents.
        """
        self._cross_jump(step, computed=True)
        before = list(self._computed)
        self._computed[step] = velocity
        missing: dict[int, float] = {}
        for skipped, taken in self._foretold.items():
            right = self._parts([*before[1 - INTERPOLATING_POINTS :], step], skipped)
            length = self.sigmas[skipped + 1] - self.sigmas[skipped]
            for point in {*taken, *right}:
                part = right.get(point, 0.0) - taken.get(point, 0.0)
                missing[point] = missing.get(point, 0.0) + length * part
        if missing:
            latents = latents + self._sum(missing)
        self._foretold.clear()
        for old in list(self._computed)[: 1 - INTERPOLATING_POINTS]:
            del self._computed[old]
        return latents

    def _cross_jump(self, step: int, computed: bool) -> None:
        """Forget the velocities before the jump, once `step` is beyond it."""
        if step >= self.jump and any(point < self.jump for point in self._computed):
            if not computed or step > self.jump:
                raise ValueError(f"step {self.jump} must be computed: the experts come in there")
            self._computed.clear()
            self._foretold.clear()

    def _parts(self, points: Sequence[int], step: int) -> dict[int, float]:
        """Each point's weight in the value at `step` of the polynomial through all points (Lagrange)."""
        parts = {}
        for point in points:
            parts[point] = 1.0
            for other in points:
                if other != point:
                    parts[point] *= (self.sigmas[step] - self.sigmas[other]) / (
                        self.sigmas[point] - self.sigmas[other]
                    )
        return parts

    def _sum(self, parts: Mapping[int, float]) -> torch.Tensor:
        (first, part), *others = parts.items()
        total = part * self._computed[first]
        for point, part in others:
            total = torch.add(total, self._computed[point], alpha=part)
        return total
