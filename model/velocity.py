"""The velocity along the steps of one clip: computed in some, interpolated in the others.

Euler's method adds up velocities. Along one clip they form a smooth curve, so most of the sum can be had from
a few points of it: a skipped step first takes what the computed steps before it foretell, and as soon as the
next one is computed, what lies between is interpolated and the latents are put right. Compared with keeping a
network's inner states from step to step (first-block caches and their like) that leaves a tenth of the error,
and nothing to hold but two or three velocities (docs/performance.md).

The curve belongs to one clip: nothing of it outlives a cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from contract.params import GenerationParams
from contract.sampling import first_routed_step, noise_levels

FORETELLING_POINTS = 2
"""Computed steps that a skipped step is extended from: a straight line. More swing too far."""

INTERPOLATING_POINTS = 3
"""Computed steps that a skipped step is interpolated from in the end: a parabola, one of them behind it."""


@dataclass
class VelocityCurve:
    """The velocity of one clip's latents over its steps."""

    sigmas: Sequence[float]
    """Noise level of each step, and 0 behind the last."""
    jump: int
    """The step at which the experts come in. Nothing is interpolated across it."""
    _computed: dict[int, torch.Tensor] = field(default_factory=dict)
    """The newest computed velocities on this side of the jump, oldest first."""
    _foretold: dict[int, Mapping[int, float]] = field(default_factory=dict)
    """Steps skipped since the newest computed one: what part of which computed velocity they took."""

    @classmethod
    def of(cls, params: GenerationParams) -> VelocityCurve:
        """A new clip's curve."""
        levels = noise_levels(params.num_inference_steps, params.flow_shift)
        return cls((*levels, 0.0), first_routed_step(levels))

    def foretell(self, step: int) -> torch.Tensor:
        """The velocity that a skipped step takes for now, shaped like the computed ones."""
        self._cross_jump(step, computed=False)
        self._foretold[step] = parts = self._parts(list(self._computed)[-FORETELLING_POINTS:], step)
        return self._sum(parts)

    def corrected(self, latents: torch.Tensor, step: int, velocity: torch.Tensor) -> torch.Tensor:
        """Take a computed velocity; the latents with the steps that were skipped before it put right.

        Unless there were any, these are the very latents given.
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
        """Forget the other side of the jump."""
        if step >= self.jump and any(point < self.jump for point in self._computed):
            if not computed or step > self.jump:
                raise ValueError(f"step {self.jump} must be computed: the experts come in there")
            self._computed.clear()
            self._foretold.clear()

    def _parts(self, points: Sequence[int], step: int) -> dict[int, float]:
        """What part each point has in the polynomial through all of them at `step` (Lagrange)."""
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
