"""`cointeract up` and its clients as a user runs them: real processes, with the fast engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.settings import as_environment
from deploy.stack import free_port
from tests.faults.stack import FAST, eventually
from workers.engines.fake import FakeSettings, write_fake_checkpoint

pytestmark = pytest.mark.slow

COMMAND = (str(Path(sys.executable).with_name("cointeract")),)
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **os.environ,
    **as_environment(FAST),
    "COLUMNS": "160",
}
SPEECH_S = 4.0


@dataclass
class RunningStack:
    process: subprocess.Popen[str]
    url: str
    data: Path
    output: Path

    def said(self) -> str:
        return self.output.read_text()

    def children(self) -> dict[str, int]:
        """Process ids of the parts, by the command they run."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {}
        for pid in listing:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "redis-server" in words[0]:
                found["redis"] = int(pid)
            elif "cli.app" in words:  # else it has just been forked
                found[words[words.index("cli.app") + 1]] = int(pid)
        return found


@dataclass(frozen=True)
class Inputs:
    person: Path
    product: Path
    audio: Path

    def arguments(self, prompt: str = "She smiles.") -> list[str]:
        named = {"person": self.person, "product": self.product, "audio": self.audio}
        return [
            *(word for name, path in named.items() for word in (f"--{name}", str(path))),
            "--prompt",
            prompt,
        ]


def start_stack(
    folder: Path, *arguments: str, cwd: Path = ROOT, environment: Mapping[str, str] = ENVIRONMENT
) -> RunningStack:
    write_fake_checkpoint(folder / "fake", "fake", FakeSettings(seconds_per_step=0.05))
    port = free_port("127.0.0.1")
    data, output = folder / "data", folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, "up", "-p", str(port), "--data", str(data), "-c", str(folder / "fake"), *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=environment,
        )
    return RunningStack(process, f"http://127.0.0.1:{port}", data, output)


def stop(stack: RunningStack) -> None:
    if stack.process.poll() is None:
        stack.process.send_signal(signal.SIGTERM)
        stack.process.wait(30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    stack = start_stack(tmp_path_factory.mktemp("up"))
    eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, 60, "the ready panel")
    assert stack.process.poll() is None, stack.said()
    yield stack
    stop(stack)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    inputs = Inputs(folder / "person.png", folder / "product.png", folder / "speech.wav")
    Image.new("RGB", (96, 160), "teal").save(inputs.person)
    Image.new("RGB", (96, 96), "orange").save(inputs.product)
    tone = 0.3 * np.sin(np.arange(int(16_000 * SPEECH_S)) / 20)
    soundfile.write(inputs.audio, tone, 16_000)
    return inputs


def cointeract(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        timeout=90,
        check=False,
    )


def test_the_panel_names_the_url_and_the_workers(stack: RunningStack) -> None:
    said = stack.said()
    assert f"{stack.url}/docs" in said
    assert "fake on cpu" in said
    assert stack.children().keys() == {"redis", "serve", "reaper", "worker"}


def test_generate_saves_a_video_as_long_as_the_speech(
    stack: RunningStack, inputs: Inputs, tmp_path: Path
) -> None:
    video = tmp_path / "new folder" / "out.mp4"
    arguments = [*inputs.arguments(), "--seed", "7", "--steps", "25", "-o", str(video)]
    done = cointeract("generate", "--url", stack.url, *arguments)
    assert done.returncode == 0, done.stderr
    assert "seed 7" in done.stdout
    assert re.search(r"clip 2/2", done.stdout)  # which stages are seen depends on when it polls
    with av.open(str(video)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == round(SPEECH_S * 25)
    assert not list(tmp_path.rglob("*.part"))


def test_a_refused_input_is_named_in_one_sentence(
    stack: RunningStack, inputs: Inputs, tmp_path: Path
) -> None:
    liar = tmp_path / "person.png"
    liar.write_bytes(b"not a picture")
    arguments = ["--person", str(liar), "--audio", str(inputs.audio), "--prompt", "hello"]
    done = cointeract("generate", "--url", stack.url, *arguments, "-o", str(tmp_path / "out.mp4"))
    assert done.returncode == 1
    assert "person_image" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_a_failed_job_gives_its_reason_and_exit_status_1(
    stack: RunningStack, inputs: Inputs, tmp_path: Path
) -> None:
    arguments = inputs.arguments("fault:error")
    done = cointeract("generate", "--url", stack.url, *arguments, "-o", str(tmp_path / "out.mp4"))
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_cancels_the_job(stack: RunningStack, inputs: Inputs, tmp_path: Path) -> None:
    client = subprocess.Popen(
        [
            *COMMAND,
            "generate",
            "--url",
            stack.url,
            *inputs.arguments(),
            "--steps",
            "100",
            "-o",
            str(tmp_path / "out.mp4"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        # Whoever starts tests in the background may have told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert client.stdout is not None
    job_id = re.search(r"job_\w+", client.stdout.readline())
    assert job_id is not None
    status_url = f"{stack.url}/v1/jobs/{job_id[0]}"
    eventually(lambda: httpx.get(status_url).json()["status"] == "processing", what="the job's start")

    client.send_signal(signal.SIGINT)

    assert client.wait(30) == 130
    assert httpx.get(status_url).json()["status"] == "canceled"


@pytest.mark.parametrize("victim", ["worker", "serve", "reaper", "redis"])
def test_a_killed_part_comes_back_and_the_job_finishes(
    stack: RunningStack, inputs: Inputs, tmp_path: Path, victim: str
) -> None:
    video = tmp_path / "out.mp4"
    client = subprocess.Popen(
        [*COMMAND, "generate", "--url", stack.url, *inputs.arguments(), "--steps", "30", "-o", str(video)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    assert client.stdout is not None
    for line in client.stdout:
        if "denoising" in line:
            break
    before = stack.children()[victim]

    os.kill(before, signal.SIGKILL)

    _, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors
    assert video.stat().st_size > 1000
    eventually(lambda: stack.children().get(victim, before) != before, what=f"another {victim}")
    eventually(lambda: "killed by SIGKILL" in stack.said(), what="a word about it")


def test_a_second_stack_on_the_same_folder_is_refused(stack: RunningStack) -> None:
    done = cointeract("up", "--port", str(free_port("127.0.0.1")), "--data", str(stack.data))
    assert done.returncode == 1
    assert f"process {stack.process.pid}" in done.stdout + done.stderr


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    done = cointeract("up", "--port", "0", "--data", str(tmp_path / "data"), "--checkpoint", str(tmp_path))
    assert done.returncode == 1
    assert "cointeract.json" in done.stderr


def test_a_client_without_a_server_is_told_how_to_start_one(inputs: Inputs, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    done = cointeract("generate", "--url", url, *inputs.arguments(), "-o", str(tmp_path / "out.mp4"))
    assert done.returncode == 1
    assert "cointeract up" in done.stderr


def test_wrong_usage_is_exit_status_2(inputs: Inputs) -> None:
    assert cointeract("generate", *inputs.arguments()).returncode == 2
    assert cointeract("no-such-command").returncode == 2


def test_a_part_without_redis_says_what_to_set(tmp_path: Path) -> None:
    done = cointeract("serve", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "COINTERACT_REDIS_URL" in done.stderr


def test_sigterm_stops_everything_and_leaves_no_process(stack: RunningStack) -> None:
    parts = stack.children()
    stop(stack)
    assert stack.process.returncode == 0
    for pid in parts.values():
        assert not Path(f"/proc/{pid}").exists()
    assert "Jobs and results are kept" in stack.said()
