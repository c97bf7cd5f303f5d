"""`cointeract generate` without a server, with the real network at its smallest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cli.app import app
from contract.card import CheckpointDefaults
from contract.video import CLIP_FRAMES, FPS
from deploy.samples import BUNDLED_CHECKPOINT
from deploy.up import checkpoint_card
from model.checkpoints.card_file import rewrite_card
from model.checkpoints.tiny import write_tiny_checkpoint
from model.transformer import CoInteractTransformer3DModel

pytestmark = pytest.mark.slow

run = CliRunner()
SPEECH_S = 0.6
CASES = Path(__file__).parents[1] / "data" / "cases"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    Image.new("RGB", (80, 90), "teal").save(folder / "person.png")
    soundfile.write(folder / "speech.wav", 0.3 * np.sin(np.arange(int(16_000 * SPEECH_S)) / 20), 16_000)
    write_tiny_checkpoint(folder / "tiny")
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
    output = ["-o", str(folder / "out.mp4"), "--device", "cpu"]
    return run.invoke(app, ["generate", *inputs, *output, *arguments])


def test_a_video_as_long_as_the_speech_is_rendered_in_this_process(folder: Path) -> None:
    checkpoint = ("--checkpoint", str(folder / "tiny"))
    done = generate(folder, *checkpoint, "--size", "64x64", "--steps", "1", "--seed", "5")
    assert done.exit_code == 0, done.output
    assert "untrained" in done.output
    assert "seed 5" in done.output
    with av.open(str(folder / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height) == (64, 64)
        assert len(frames) == round(SPEECH_S * 25)
        assert container.streams.audio[0].codec_context.name == "aac"
    assert not list(folder.glob("*.part"))


def test_without_a_checkpoint_the_bundled_one_renders_and_says_what_it_is(folder: Path) -> None:
    done = generate(folder, "--steps", "1")
    assert done.exit_code == 0, done.output
    assert checkpoint_card(BUNDLED_CHECKPOINT).note.split(":")[0] in done.output
    with av.open(str(folder / "out.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (80, 128)


def test_a_draft_takes_the_few_steps_of_a_distilled_checkpoint_and_is_refused_by_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled = folder / "distilled"
    shutil.copytree(folder / "tiny", distilled)
    few = CheckpointDefaults(num_inference_steps=2, guidance_scale=1.0, flow_shift=5.0, negative_prompt="")
    rewrite_card(checkpoint_card(distilled).model_copy(update={"draft": few}), distilled)
    timesteps: list[float] = []
    plain = CoInteractTransformer3DModel.forward

    def watched(self: Any, latents: torch.Tensor, timestep: float, *more: Any, **named: Any) -> Any:
        timesteps.append(float(timestep))
        return plain(self, latents, timestep, *more, **named)

    monkeypatch.setattr(CoInteractTransformer3DModel, "forward", watched)
    options = ("--size", "64x64", "--preset", "draft")
    done = generate(folder, "--checkpoint", str(distilled), *options)
    assert done.exit_code == 0, done.output
    clips = -(-round(SPEECH_S * FPS) // CLIP_FRAMES)
    # No pass without the prompt, and the noise levels of the draft's own flow shift: 1 and 2.5 / 3.
    assert timesteps == pytest.approx([1000.0, 1000 * 2.5 / 3] * clips)
    refused = generate(folder, "--checkpoint", str(folder / "tiny"), *options)
    assert refused.exit_code == 1
    assert "its card has no settings `draft`" in " ".join(refused.output.split())


def test_files_are_decoded_as_a_server_decodes_them(folder: Path) -> None:
    sound = 0.003 * np.sin(np.arange(48_000) / 20)
    soundfile.write(folder / "stereo.flac", np.stack([sound, -sound], 1)[: int(48_000 * SPEECH_S)], 48_000)
    files = ("--person", str(CASES / "tiles_turned.heic"), "--audio", str(folder / "stereo.flac"))
    options = ("--checkpoint", str(folder / "tiny"), "--size", "64x64", "--steps", "1")
    done = run.invoke(
        app,
        ["generate", *files, "--prompt", "Hi.", "-o", str(folder / "out.mp4"), "--device", "cpu", *options],
    )
    assert done.exit_code == 0, done.output
    assert "Warning: The speech is far too quiet" in done.output
    with av.open(str(folder / "out.mp4")) as container:
        left, right = np.concatenate(
            [frame.to_ndarray() for frame in container.decode(container.streams.audio[0])], axis=1
        )
        assert np.abs(left).max() > 0.001, "stereo in, stereo out"
        assert np.abs(left - right).max() < np.abs(left + right).max() / 4, "the right channel was turned"


def test_a_file_that_a_server_refuses_is_refused_in_a_sentence(folder: Path) -> None:
    (folder / "cut.mp3").write_bytes(
        (CASES / "vbr_noxing.mp3").read_bytes()[:9000] + b"\0" * 9000 + b"x" * 9000
    )
    done = generate(folder, "--audio", str(folder / "cut.mp3"))
    assert done.exit_code == 1
    assert "cut.mp3: The file ends before its content does." in " ".join(done.stderr.split())


@pytest.mark.parametrize("size", ["100x100", "64", "x64", "64 by 64"])
def test_a_size_that_makes_no_sense_is_refused_in_a_sentence(folder: Path, size: str) -> None:
    done = generate(folder, "--size", size)
    assert done.exit_code == 1
    assert "multiples of 16" in done.stderr


def test_a_folder_that_is_no_checkpoint_is_refused_in_a_sentence(folder: Path) -> None:
    done = generate(folder, "--checkpoint", str(folder))
    assert done.exit_code == 1
    assert "cointeract.json" in done.stderr
