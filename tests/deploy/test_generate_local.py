"""`cointeract generate` without a server, with the real network at its smallest."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner, Result

from deploy.cli import app

run = CliRunner()
SPEECH_S = 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    Image.new("RGB", (80, 90), "teal").save(folder / "person.png")
    soundfile.write(folder / "speech.wav", 0.3 * np.sin(np.arange(int(16_000 * SPEECH_S)) / 20), 16_000)
    return folder


def generate(folder: Path, *arguments: str) -> Result:
    inputs = [
        "--person",
        str(folder / "person.png"),
        "--audio",
        str(folder / "speech.wav"),
        "--prompt",
        "Hello.",
    ]
    output = ["-o", str(folder / "out.mp4"), "--data", str(folder / "data"), "--device", "cpu"]
    return run.invoke(app, ["generate", *inputs, *output, *arguments])


def test_a_video_as_long_as_the_speech_is_rendered_in_this_process(folder: Path) -> None:
    done = generate(folder, "--size", "64x64", "--steps", "1", "--seed", "5")
    assert done.exit_code == 0, done.output
    assert "untrained" in done.output
    assert "seed 5" in done.output
    with av.open(str(folder / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height) == (64, 64)
        assert len(frames) == round(SPEECH_S * 25)
        assert container.streams.audio[0].codec_context.name == "aac"
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("size", ["100x100", "64", "x64", "64 by 64"])
def test_a_size_that_makes_no_sense_is_refused_in_a_sentence(folder: Path, size: str) -> None:
    done = generate(folder, "--size", size)
    assert done.exit_code == 1
    assert "multiples of 16" in done.stderr


def test_a_folder_that_is_no_checkpoint_is_refused_in_a_sentence(folder: Path) -> None:
    done = generate(folder, "--checkpoint", str(folder))
    assert done.exit_code == 1
    assert "cointeract.json" in done.stderr
