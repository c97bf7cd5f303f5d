"""`cointeract generate` makes the same of a file whether it renders in its own process or asks a server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from deploy.stack import free_port
from model.checkpoints.tiny import write_tiny_checkpoint
from tests.deploy.test_up import COMMAND
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

OURS = Path(__file__).parents[1] / "data" / "cases"
SHARED = Path(__file__).parents[3] / "shared" / "cases"
"""More files of real users, beside a checkout of the project's authors; nobody else needs them."""
PHOTOS = (".jpg", ".heic")
WITHOUT_SHARED = 4
VARIANTS = ("hlg", "p3_", "tiles", "turned")
"""Photos that other tests decode. One is refused."""
RECORDINGS = (".wav", ".mp3", ".ogg", ".flac", ".aac", ".webm")

run = CliRunner()


def pairs() -> list[tuple[Path, Path]]:
    """Each photo and each recording at least once; without the authors' files, a few of ours."""
    files = {path.name: path for folder in (OURS, SHARED) if folder.is_dir() for path in folder.iterdir()}
    photos = [path for path in files.values() if path.suffix in PHOTOS and not path.name.startswith(VARIANTS)]
    recordings = [path for path in files.values() if path.suffix in RECORDINGS]
    few, many = sorted((sorted(photos), sorted(recordings)), key=len)
    together = [
        pair if pair[0].suffix in PHOTOS else pair[::-1] for pair in zip(cycle(few), many, strict=False)
    ]
    return together if SHARED.is_dir() else together[:WITHOUT_SHARED]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the checkpoint, with all that belongs to it."""
    folder, port = tmp_path_factory.mktemp("up"), free_port("127.0.0.1")
    options = ["-p", str(port), "--data", str(folder / "data"), "-c", str(checkpoint)]
    output = folder / "output.txt"
    with (
        output.open("w") as file,
        subprocess.Popen(
            [*COMMAND, "up", *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "160"},
        ) as stack,
    ):
        try:
            eventually(
                lambda: "is ready" in output.read_text() or stack.poll() is not None, 120, "the ready panel"
            )
            assert stack.poll() is None, output.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            stack.terminate()


def generate(person: Path, speech: Path, output: Path, *where: str) -> Result:
    options = ["--prompt", "Hi.", "--size", "64x64", "--steps", "1", "--clips", "1", "--seed", "7"]
    files = ["--person", str(person), "--audio", str(speech), "-o", str(output)]
    return run.invoke(app, ["generate", *files, *options, *where])


def content(video: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames (F, H, W, 3) and sound (channels, samples)."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    with av.open(str(video)) as container:
        sound = [frame.to_ndarray() for frame in container.decode(container.streams.audio[0])]
    return np.stack(frames), np.concatenate(sound, axis=1)


@pytest.mark.parametrize(("person", "speech"), pairs(), ids=lambda path: path.name)
def test_a_file_becomes_the_same_video_here_and_on_a_server(
    person: Path, speech: Path, checkpoint: Path, url: str, tmp_path: Path
) -> None:
    here = generate(person, speech, tmp_path / "here.mp4", "--checkpoint", str(checkpoint), "--device", "cpu")
    there = generate(person, speech, tmp_path / "there.mp4", "--url", url)
    assert (here.exit_code, there.exit_code) == (0, 0), here.output + there.output
    warned = [[line for line in made.output.splitlines() if "Warning" in line] for made in (here, there)]
    assert warned[0] == warned[1]
    (frames, sound), (frames_there, sound_there) = (
        content(tmp_path / "here.mp4"),
        content(tmp_path / "there.mp4"),
    )
    np.testing.assert_array_equal(frames, frames_there)
    np.testing.assert_array_equal(sound, sound_there)


def test_a_file_is_refused_for_the_same_reason_here_and_on_a_server(
    checkpoint: Path, url: str, tmp_path: Path
) -> None:
    files = (OURS / "hlg.heic", OURS / "adts.aac", tmp_path / "none.mp4")
    where = (("--checkpoint", str(checkpoint), "--device", "cpu"), ("--url", url))
    refused = [generate(*files, *each) for each in where]
    assert [made.exit_code for made in refused] == [1, 1]
    assert all("The picture is HDR" in " ".join(made.output.split()) for made in refused)
    assert not files[-1].exists()
