"""Interpolating the velocity of skipped steps."""

from __future__ import annotations

import pytest
import torch

from contract.sampling import noise_levels
from model.velocity import INTERPOLATING_POINTS, VelocityCurve

LEVELS = (*noise_levels(20, 3.0), 0.0)


def walk(curve: VelocityCurve, velocities: torch.Tensor, computed: set[int]) -> torch.Tensor:
    """Where Euler's method ends, from 0, with only the `computed` velocities (steps, D) looked at."""
    latents = torch.zeros_like(velocities[0])
    for step in range(len(velocities)):
        if step in computed:
            velocity = velocities[step]
            latents = curve.corrected(latents, step, velocity)
        else:
            velocity = curve.foretell(step)
        latents = latents + (LEVELS[step + 1] - LEVELS[step]) * velocity
    return latents


def exact(velocities: torch.Tensor) -> torch.Tensor:
    steps = torch.tensor(LEVELS, dtype=velocities.dtype).diff()
    return (steps[:, None] * velocities).sum(dim=0)


def polynomial(degree: int, jump: float = 0.0) -> torch.Tensor:
    """(20, 3) velocities, polynomials of the noise level; `jump` is added from step 6 on."""
    levels = torch.tensor(LEVELS[:-1], dtype=torch.float64)
    coefficients = torch.randn(degree + 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocities = torch.stack([levels**power for power in range(degree + 1)], dim=1) @ coefficients
    velocities[6:] += jump
    return velocities


def test_a_parabola_is_followed_exactly() -> None:
    velocities = polynomial(2)
    reached = walk(VelocityCurve(LEVELS, jump=0), velocities, {0, 5, 6, 11, 16, 19})
    # All but the steps between the first two points, which only a straight line can join.
    way = torch.tensor([(LEVELS[step] - 1) / (LEVELS[5] - 1) for step in range(6)], dtype=torch.float64)
    straight = velocities[0] + way[:, None] * (velocities[5] - velocities[0])
    velocities = torch.cat([straight, velocities[6:]])
    torch.testing.assert_close(reached, exact(velocities))


def test_a_straight_line_is_followed_across_a_jump_that_is_known() -> None:
    velocities = polynomial(1, jump=0.5)
    computed = {0, 3, 6, 7, 19}
    torch.testing.assert_close(walk(VelocityCurve(LEVELS, jump=6), velocities, computed), exact(velocities))
    blind = walk(VelocityCurve(LEVELS, jump=0), velocities, computed)
    assert (blind - exact(velocities)).abs().max() > 0.005


def test_interpolating_skipped_steps_leaves_a_fraction_of_the_error() -> None:
    velocities = polynomial(5)
    computed = {0, 4, 8, 12, 15, 18, 19}
    reused = torch.stack([velocities[max(c for c in computed if c <= step)] for step in range(20)])
    interpolated = walk(VelocityCurve(LEVELS, jump=0), velocities, computed)
    errors = [(each - exact(velocities)).norm().item() for each in (exact(reused), interpolated)]
    assert errors[1] < errors[0] / 10, errors


def test_nothing_is_corrected_when_every_step_is_computed() -> None:
    curve = VelocityCurve(LEVELS, jump=6)
    latents = torch.zeros(3)
    assert all(curve.corrected(latents, step, torch.ones(3)) is latents for step in range(20))


def test_it_holds_no_more_velocities_than_it_interpolates_from() -> None:
    curve = VelocityCurve(LEVELS, jump=6)
    for step in range(20):
        curve.corrected(torch.zeros(1), step, torch.ones(1))
        assert len(curve._computed) < INTERPOLATING_POINTS


def test_the_step_where_the_experts_come_in_must_be_computed() -> None:
    curve = VelocityCurve(LEVELS, jump=6)
    curve.corrected(torch.zeros(1), 0, torch.ones(1))
    with pytest.raises(ValueError, match="step 6 must be computed"):
        curve.corrected(torch.zeros(1), 7, torch.ones(1))
    with pytest.raises(ValueError, match="step 6 must be computed"):
        curve.foretell(6)
