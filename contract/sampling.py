"""The denoising steps of one clip: their noise levels, and which of them the network computes.

An exact video computes every step. The faster presets compute some and interpolate the velocity in the others
(`model.velocity`). How well that does depends on where the computed steps lie, so a card may name their noise
levels, as `cointeract calibrate` has measured them on its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from contract.choices import Preset

TRAINING_STEPS: Final = 1000
"""A timestep is this many times its noise level."""

ROUTING_LIMIT: Final = 900.0
"""From this timestep up, layout is still being decided and the experts keep out of it. The velocity jumps
where they come in, so nothing is interpolated across it.
"""

LEAST_SAVING: Final[Mapping[Preset, float]] = MappingProxyType({Preset.BALANCED: 1.9, Preset.FAST: 3.0})
"""Presets that skip steps, and how many times fewer they compute at least."""

_LEVEL_OFFSET: Final = 0.4
"""See `even_steps`. Chosen on the shipped checkpoint (docs/performance.md)."""


def noise_levels(num_inference_steps: int, flow_shift: float) -> tuple[float, ...]:
    """Noise level of each step, from 1 down; after the last step there is none."""
    grid = (1 - step / num_inference_steps for step in range(num_inference_steps))
    return tuple(flow_shift * level / (1 + (flow_shift - 1) * level) for level in grid)


def first_routed_step(levels: Sequence[float]) -> int:
    """The first step with experts; `len(levels)` if there is none."""
    # The network compares timesteps in single precision.
    unrouted = (round(TRAINING_STEPS * level, 3) >= ROUTING_LIMIT for level in levels)
    return sum(unrouted)


def needed_steps(levels: Sequence[float]) -> set[int]:
    """Steps that are computed whatever is skipped: both ends, and where the experts come in."""
    routed = first_routed_step(levels)
    return {0, len(levels) - 1} | ({routed} if routed < len(levels) else set())


def even_steps(levels: Sequence[float], saving: float) -> tuple[int, ...]:
    """Steps to compute when nothing is known of the checkpoint: at least `saving` times fewer than there are,
    if the needed ones allow.

    They lie evenly over the mean of two measures: the number of the step, and the logarithm of the noise
    level above an offset, which is finer where little noise is left and the velocity turns fastest. One lies
    before the experts come in, since a single point of a curve tells no direction.
    """
    last, needed = len(levels) - 1, needed_steps(levels)
    if (routed := first_routed_step(levels)) > 2:
        needed.add(min(routed, last) // 2)
    wanted = max(len(needed), int(len(levels) / saving))
    depths = [-math.log(_LEVEL_OFFSET + level) for level in levels]
    span = max(depths[-1] - depths[0], 1e-9)
    places = [(depth - depths[0]) / span + step / max(last, 1) for step, depth in enumerate(depths)]

    def at_distance(distance: float) -> tuple[int, ...]:
        chosen = [0]
        for step in range(1, len(levels)):
            if step in needed or places[step] - places[chosen[-1]] >= distance:
                chosen.append(step)
        return tuple(chosen)

    # The distances at which the choice can change; the smallest that leaves few enough is the best.
    distances = sorted({b - a for i, a in enumerate(places) for b in places[i + 1 :]} | {math.inf, 0.0})
    return next(steps for steps in map(at_distance, distances) if len(steps) <= wanted)


def nearest_steps(levels: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """The steps that stand for those at the noise levels `wanted`, from 1 down, of another schedule.

    The needed steps of this schedule stand for that one's, the nearest for the others.
    """
    inner = set(range(len(wanted))) - needed_steps(wanted)
    nearest = {min(range(len(levels)), key=lambda step: abs(levels[step] - wanted[i])) for i in inner}
    return tuple(sorted(nearest | needed_steps(levels)))
