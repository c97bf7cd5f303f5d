"""The programs in examples/, run as their page says against a real server with the fast engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from jobs.artifacts import FolderStore
from server.keys import create_key
from tests.deploy.test_up import ROOT, SPEECH_S, Inputs, RunningStack, inputs, start_stack, stop
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

__all__ = ["inputs"]

PROGRAMS = {"generate.sh": "sh", "generate.py": sys.executable, "generate.mjs": "node"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    stack = start_stack(tmp_path_factory.mktemp("examples"))
    eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, 60, "the ready panel")
    assert "is ready" in stack.said(), stack.said()
    yield stack
    stop(stack)


@pytest.fixture(scope="module")
def key(stack: RunningStack) -> str:
    """From here on every request needs a key."""
    return create_key(FolderStore(stack.data / "storage"), "examples").token


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> list[str]:
    name = str(request.param)
    needed = "curl" if name == "generate.sh" else PROGRAMS[name]
    if shutil.which(needed) is None:
        pytest.skip(f"{needed} is not installed")
    if needed == "node":
        version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.strip("v").split(".")[0]) < 20:
            pytest.skip(f"Node 20 is needed, this is {version.strip()}")
    return [PROGRAMS[name], str(ROOT / "examples" / name)]


def run(
    program: list[str], stack: RunningStack, inputs: Inputs, output: Path, *prompts: str, key: str
) -> subprocess.CompletedProcess[str]:
    files = [str(inputs.person), str(inputs.product), str(inputs.audio), str(output)]
    environment = {**os.environ, "COINTERACT_URL": stack.url, "COINTERACT_API_KEY": key}
    return subprocess.run(
        [*program, *files, *prompts], capture_output=True, text=True, check=False, env=environment, timeout=90
    )


def test_it_saves_the_video_of_all_prompts(
    program: list[str], stack: RunningStack, inputs: Inputs, key: str, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    prompts = ("@She smiles; and waves.", 'She says "hello".')
    done = run(program, stack, inputs, output, *prompts, key=key)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == round(SPEECH_S * 25)
    job_id = re.search(r"job_\w+", done.stderr)
    assert job_id is not None
    headers = {"Authorization": f"Bearer {key}"}
    job = httpx.get(f"{stack.url}/v1/jobs/{job_id[0]}", headers=headers, trust_env=False).json()
    assert job["params"]["prompts"] == list(prompts)
    assert "succeeded" in done.stderr


def test_it_says_why_a_request_is_refused(
    program: list[str], stack: RunningStack, inputs: Inputs, key: str, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    wrong = Inputs(inputs.audio, inputs.product, inputs.audio)
    done = run(program, stack, wrong, output, "She smiles.", key=key)
    assert done.returncode == 1
    assert "refused: " in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert not output.exists()
    stranger = run(program, stack, inputs, output, "She smiles.", key="ck_nobody_0")
    assert (stranger.returncode, output.exists()) == (1, False)
    assert "API key" in stranger.stderr


def test_it_says_why_a_job_failed(
    program: list[str], stack: RunningStack, inputs: Inputs, key: str, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    done = run(program, stack, inputs, output, "fault:error", key=key)
    assert done.returncode == 1
    assert re.search(r"failed: .{10,}", done.stderr), done.stderr
    assert not output.exists()


def test_wrong_usage_is_told(program: list[str]) -> None:
    done = subprocess.run([*program, "person.png"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PERSON PRODUCT AUDIO OUTPUT PROMPT" in done.stderr


def test_the_page_names_every_program_and_its_arguments() -> None:
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for name in PROGRAMS:
        assert f"[{name}]({name})" in page
        assert re.search(rf"examples/{name} +\S+\.png \S+\.png \S+\.wav \S+\.mp4 \"", page), name
