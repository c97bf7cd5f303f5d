"""Schedule, guidance, noise and pixels."""

import re

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from model.sampling import (
    apply_guidance,
    draw_noise,
    frames_from_pixels,
    pixels_from_frames,
    set_schedule,
)
from tests.model.official_parts import recorded

CPU = torch.device("cpu")


def schedule(steps: int, shift: float) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_schedule(scheduler, steps, shift, CPU)
    return scheduler


def test_sigmas_and_timesteps_are_the_official_ones():
    cases, _ = recorded("scheduler_cases")
    compared = 0
    for key, official in cases.items():
        if match := re.fullmatch(r"sigmas\.steps(\d+)\.shift([\d.]+)", key):
            scheduler = schedule(int(match[1]), float(match[2]))
            assert torch.allclose(scheduler.sigmas[:-1], official, rtol=1e-6, atol=0)
            assert torch.allclose(
                scheduler.timesteps, cases[key.replace("sigmas", "timesteps")], rtol=1e-6, atol=0
            )
            compared += 1
    assert compared == 5


def test_the_last_step_goes_to_sigma_zero():
    scheduler = schedule(3, 7.0)
    latents, velocity = torch.randn(2, 3), torch.randn(2, 3)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize(("steps", "shift"), [(0, 7.0), (4, 0.0), (4, -1.0)])
def test_impossible_schedules_are_refused(steps, shift):
    with pytest.raises(ValueError, match="must be"):
        schedule(steps, shift)


def test_guidance_goes_from_the_unconditional_through_the_conditional():
    cond, uncond = torch.tensor([2.0]), torch.tensor([1.0])
    assert apply_guidance(cond, uncond, 1.0) == cond
    assert apply_guidance(cond, uncond, 7.0) == 8.0


def test_noise_follows_from_its_seed_alone():
    before = torch.random.get_rng_state()
    assert torch.equal(draw_noise((1, 16, 2), 5), draw_noise((1, 16, 2), 5))
    assert not torch.equal(draw_noise((1, 16, 2), 5), draw_noise((1, 16, 2), 6))
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_level_survives_the_way_to_pixels_and_back():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = pixels_from_frames(frames, CPU, torch.float32)
    assert pixels.shape == (1, 3, 1, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)
    nudged = frames_from_pixels(pixels + 1e-4)
    assert np.array_equal(nudged, frames)
