from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from deploy.sample_speech import SAMPLE_RATE, SENTENCES, SOUNDS, speak
from deploy.samples import PROMPTS, Samples, write_samples
from jobs.contract import CLIP_FRAMES, FPS


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return write_samples(tmp_path_factory.mktemp("samples"))


def digests(samples: Samples) -> list[str]:
    paths = (samples.person, samples.product, samples.audio, samples.prompts)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_same_samples_are_written_every_time(samples: Samples, tmp_path: Path) -> None:
    assert digests(write_samples(tmp_path)) == digests(samples)


def test_the_pictures_have_the_shape_of_real_inputs(samples: Samples) -> None:
    person, product = Image.open(samples.person), Image.open(samples.product)
    assert (person.mode, person.size) == ("RGB", (720, 1280))
    assert (product.mode, product.size) == ("RGB", (768, 768))


def test_edges_are_smooth(samples: Samples) -> None:
    """On the bottle's round shoulder, most rows pass through shades between the glass and the white."""
    shoulder = np.asarray(Image.open(samples.product).convert("L"))[290:400, 240:320]
    between = (shoulder > 150) & (shoulder < 240)
    assert between.any(axis=1).mean() > 0.5


def test_there_is_a_prompt_for_each_clip_of_the_speech(samples: Samples) -> None:
    seconds = soundfile.info(samples.audio).duration
    assert 8 <= seconds <= 10
    assert len(PROMPTS) == -(-round(seconds * FPS) // CLIP_FRAMES)
    assert samples.prompts.read_text(encoding="utf-8").splitlines() == list(PROMPTS)


def test_the_speech_sounds_like_speech() -> None:
    """Syllables and pauses, most power below 4 kHz, hissing where an S is, no clipping."""
    speech = speak()
    assert 0.5 < np.abs(speech).max() < 0.9
    frame = SAMPLE_RATE // 50
    loudness = np.sqrt((speech[: len(speech) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))
    assert (loudness < 0.02).mean() > 0.08, "pauses"
    assert (loudness > 0.05).mean() > 0.4, "voice"
    power = np.abs(np.fft.rfft(speech)) ** 2
    frequency = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE)
    assert power[frequency < 4000].sum() > 0.9 * power.sum()
    signs = np.signbit(speech[: len(loudness) * frame]).reshape(-1, frame)
    crossings = np.diff(signs, axis=1).mean(axis=1)
    assert (crossings[loudness > 0.02] > 0.25).any(), "fricatives"


def test_every_sound_of_the_script_is_known() -> None:
    assert {name for sentence in SENTENCES for name in sentence.split()} <= SOUNDS.keys()
