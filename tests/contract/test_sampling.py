"""Which steps the faster presets compute."""

from __future__ import annotations

import itertools

import pytest

from contract.choices import Preset
from contract.sampling import (
    LEAST_SAVING,
    even_steps,
    first_routed_step,
    nearest_steps,
    needed_steps,
    noise_levels,
)

SCHEDULES = [(20, 3.0), (40, 7.0), (40, 5.0), (30, 1.0), (1000, 12.0), (7, 3.0)]


def test_the_noise_levels_are_those_of_the_scheduler() -> None:
    torch = pytest.importorskip("torch")
    from diffusers import FlowMatchEulerDiscreteScheduler

    from model.sampling import set_schedule

    for steps, shift in SCHEDULES:
        scheduler = FlowMatchEulerDiscreteScheduler()
        set_schedule(scheduler, steps, shift, torch.device("cpu"))
        levels = torch.tensor([*noise_levels(steps, shift), 0.0])
        torch.testing.assert_close(scheduler.sigmas, levels, rtol=0, atol=1e-6)
        routed = [bool(t < 900) for t in scheduler.timesteps]
        assert first_routed_step(noise_levels(steps, shift)) == routed.index(True)


@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
@pytest.mark.parametrize("preset", list(LEAST_SAVING))
def test_an_uncalibrated_preset_saves_what_it_promises(preset: Preset, steps: int, shift: float) -> None:
    levels = noise_levels(steps, shift)
    chosen = even_steps(levels, LEAST_SAVING[preset])
    needed = needed_steps(levels)
    assert len(chosen) <= max(steps / LEAST_SAVING[preset], len(needed) + 1)
    assert needed <= set(chosen)
    assert list(chosen) == sorted(set(chosen))


def test_more_steps_are_computed_where_little_noise_is_left() -> None:
    levels = noise_levels(40, 7.0)
    chosen = even_steps(levels, 3.0)
    gaps = [after - before for before, after in itertools.pairwise(chosen)]
    assert gaps[-1] < gaps[0]
    assert sum(gaps[-4:]) < sum(gaps[:4]) / 2


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_few_step_video_keeps_its_ends(steps: int) -> None:
    chosen = even_steps(noise_levels(steps, 5.0), 3.0)
    assert chosen[0] == 0
    assert chosen[-1] == steps - 1


def test_the_balanced_preset_is_never_coarser_than_the_fast_one() -> None:
    for steps, shift in SCHEDULES:
        levels = noise_levels(steps, shift)
        assert len(even_steps(levels, LEAST_SAVING[Preset.BALANCED])) >= len(
            even_steps(levels, LEAST_SAVING[Preset.FAST])
        )


def test_calibrated_levels_are_found_again_on_another_grid() -> None:
    card = noise_levels(20, 3.0)
    wanted = [card[step] for step in (0, 3, 6, 12, 16, 18, 19)]
    assert nearest_steps(card, wanted) == (0, 3, 6, 12, 16, 18, 19)
    assert nearest_steps(noise_levels(40, 3.0), wanted) == (0, 6, 11, 24, 32, 36, 39)
    assert nearest_steps(noise_levels(3, 3.0), wanted) == (0, 1, 2)
