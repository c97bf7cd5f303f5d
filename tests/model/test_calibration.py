"""Choosing the steps that a preset computes, on a recorded run."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.choices import Preset
from contract.sampling import LEAST_SAVING, noise_levels
from model.calibration import (
    IDENTICAL_DB,
    MARGIN_DB,
    WANTED_PSNR_DB,
    Trial,
    _EndError,
    best_steps,
    fewest,
    inner_products,
    psnr,
)

pytestmark = pytest.mark.slow

LEVELS = noise_levels(20, 3.0)


def choices(velocities: torch.Tensor) -> dict[int, tuple[int, ...]]:
    """(steps, D) velocities of one clip → steps by their number."""
    return {len(steps): steps for steps in best_steps(LEVELS, inner_products(list(velocities), 20))}


def test_every_number_of_steps_from_the_needed_ones_up_is_tried() -> None:
    found = choices(torch.randn(20, 50, generator=torch.Generator().manual_seed(0)))
    assert sorted(found) == list(range(3, 21))
    assert all({0, 6, 19} <= set(steps) for steps in found.values())
    assert found[20] == tuple(range(20))


def test_a_few_steps_are_chosen_as_well_as_by_trying_all() -> None:
    velocities = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)).cumsum(0)
    error = _EndError(LEVELS, inner_products(list(velocities), 20))
    others = set(range(20)) - {0, 6, 19}
    best = min(error({0, 6, 19, *pair}) for pair in itertools.combinations(others, 2))
    assert error(choices(velocities)[5]) <= 1.2 * best


def test_the_chosen_steps_leave_less_error_than_evenly_spread_ones() -> None:
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    velocities = torch.stack([torch.sin(4 * levels), (0.1 + levels).log(), levels**2], dim=1) @ waves
    clips = [*velocities, *(2 * velocities)]
    products = inner_products(clips, 20)
    assert products.shape == (2, 20, 20)
    chosen = {len(steps): steps for steps in best_steps(LEVELS, products)}[7]

    error = _EndError(LEVELS, products)
    assert error(chosen) < error((0, 3, 6, 9, 12, 15, 19)) / 2
    assert error(range(20)) == 0


def test_the_fewest_steps_that_are_good_enough_are_found_with_few_trials() -> None:
    tried: list[int] = []

    def trial(count: int) -> Trial:
        tried.append(count)
        return Trial(tuple(range(count)), (30.0 + count, 30.0 + count, 90.0))

    counts = list(range(3, 22))
    assert len(fewest(counts, trial, 44.5).steps) == 15
    assert len(set(tried)) <= 5
    assert len(fewest(counts, trial, 99.0).steps) == 21, "none is good enough: the most there may be"
    assert len(fewest(counts, trial, 1.0).steps) == 3


def test_equal_clips_are_alike_and_a_level_costs_decibels() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == IDENTICAL_DB
    assert psnr(black + 1, black) == pytest.approx(48.13, abs=0.01)
    assert psnr(black, black + 255) == 0


def test_a_calibrated_checkpoint_renders_what_its_card_says(tmp_path: Path) -> None:
    from contract.card import MANIFEST
    from contract.request import fields_of
    from contract.resolve import resolve
    from contract.video import SpeechLength
    from model.calibration import calibrate
    from model.checkpoints.card_file import read_card, rewrite_card
    from model.checkpoints.load import load_pipeline
    from model.checkpoints.tiny import write_tiny_checkpoint
    from model.checkpoints.writer import sha256_of, verify_manifest
    from model.inputs import VideoInputs
    from tests.model.test_pipeline import photo, speech

    folder = tmp_path / "tiny"
    write_tiny_checkpoint(folder, 0)
    (folder / MANIFEST).write_text(
        "".join(f"{sha256_of(folder / name)}  {name}\n" for name in ("cointeract.json", "model_index.json"))
    )
    inputs = VideoInputs(photo(1), speech(1.0), photo(2))
    request = {"prompt": "p", "size": "64x64", "seed": 3, "num_inference_steps": 9}
    pipeline, length = load_pipeline(folder), SpeechLength(16_000, 16_000)
    card = read_card(folder)
    exact = resolve(fields_of(request), card, length)
    said: list[str] = []
    found = calibrate(pipeline, inputs, exact, report=said.append)
    assert found.keys() == LEAST_SAVING.keys()
    assert len(found[Preset.FAST].levels) <= len(found[Preset.BALANCED].levels) <= 9 / 1.9
    assert said[0] == "exact: 1 clips of 9 steps"

    rewrite_card(card.model_copy(update={"calibration": found}), folder)
    assert verify_manifest(folder) == []
    (reference,) = pipeline.generate_clips(inputs, exact)
    for preset, calibration in found.items():
        params = resolve(fields_of({**request, "preset": preset}), read_card(folder), length)
        assert params.num_computed_steps == len(calibration.levels)
        (clip,) = pipeline.generate_clips(inputs, params)
        assert psnr(clip.frames, reference.frames) == pytest.approx(calibration.psnr_db, abs=0.06)
        reached = calibration.psnr_db >= WANTED_PSNR_DB[preset] + MARGIN_DB
        assert reached or len(calibration.levels) == int(9 / LEAST_SAVING[preset])
