from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.video import CLIP_FRAMES, FPS
from deploy.samples import BUNDLED, write_samples
from model.media.audio import load_audio
from model.media.images import fit_person, load_image
from tools.ship import DEMO_ACTIONS, draw_inputs


def test_the_bundled_inputs_are_those_that_the_command_draws(tmp_path: Path) -> None:
    drawn = draw_inputs(tmp_path)
    assert drawn.sentences() == BUNDLED.sentences()
    for mine, theirs in ((drawn.person, BUNDLED.person), (drawn.product, BUNDLED.product)):
        difference = np.abs(np.asarray(Image.open(mine), int) - np.asarray(Image.open(theirs), int))
        assert difference.max() <= 2, mine.name
    np.testing.assert_allclose(load_audio(drawn.audio), load_audio(BUNDLED.audio), atol=2e-4)


def test_other_people_and_actions_can_be_drawn(tmp_path: Path) -> None:
    drawn = draw_inputs(tmp_path, seed=7, actions=["hold"])
    (prompt,) = drawn.sentences()
    assert "red box" in prompt
    assert soundfile.info(drawn.audio).duration == pytest.approx(CLIP_FRAMES / FPS)


def test_there_is_a_prompt_for_each_clip_of_the_speech() -> None:
    seconds = soundfile.info(BUNDLED.audio).duration
    assert 9 < seconds < 11
    assert len(BUNDLED.sentences()) == round(seconds * FPS) / CLIP_FRAMES == len(DEMO_ACTIONS)


def test_the_person_fills_the_default_frame_without_being_cropped() -> None:
    photo = load_image(BUNDLED.person)
    assert photo.width / photo.height == 80 / 128
    whole = np.asarray(photo.resize((80, 128), Image.Resampling.LANCZOS), int)
    assert np.abs(np.asarray(fit_person(photo, 80, 128), int) - whole).max() == 0


def test_samples_are_copies_of_the_bundled_files(tmp_path: Path) -> None:
    written = write_samples(tmp_path / "new")
    for copy, original in zip(written.files, BUNDLED.files, strict=True):
        assert copy.read_bytes() == original.read_bytes()
    assert sum(file.stat().st_size for file in BUNDLED.files) < 500_000
