"""A speech and a pose checkpoint served side by side by one `cointeract up`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.test_up import Inputs, RunningStack, cointeract, inputs, start_stack, stop
from tests.faults.stack import eventually
from workers.engines.fake import FakeSettings, write_fake_checkpoint

pytestmark = pytest.mark.slow

__all__ = ["inputs"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("two")
    write_fake_checkpoint(folder / "one", "whatever its card says", FakeSettings())
    write_fake_checkpoint(folder / "other", "whatever its card says", FakeSettings())
    arguments = [
        word
        for name, place in (("speech", "one"), ("pose", "other"))
        for word in ("-c", f"{name}={folder / place}")
    ]
    stack = start_stack(folder, *arguments)  # brings a third one, "fake"
    eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, 60, "the ready panel")
    assert stack.process.poll() is None, stack.said()
    yield stack
    stop(stack)


def submit(stack: RunningStack, inputs: Inputs, **fields: str) -> dict[str, Any]:
    with inputs.person.open("rb") as person, inputs.audio.open("rb") as audio:
        files = {"person_image": person, "audio": audio}
        answer = httpx.post(f"{stack.url}/v1/generate", data=fields, files=files)
    body: dict[str, Any] = answer.json() | {"status_code": answer.status_code}
    return body


def state(stack: RunningStack, job: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(f"{stack.url}/v1/jobs/{job['id']}").json()
    return body


def test_both_are_listed_under_the_names_given(stack: RunningStack) -> None:
    models = httpx.get(f"{stack.url}/v1/models").json()["data"]
    assert {model["id"] for model in models} == {"fake", "speech", "pose"}


def test_a_job_goes_to_a_worker_that_has_the_model_it_names(stack: RunningStack, inputs: Inputs) -> None:
    # The speech worker is kept busy: what renders now is another one.
    busy = submit(stack, inputs, prompt="fault:hang", model="speech")
    eventually(lambda: state(stack, busy)["status"] == "processing", what="the busy job's start")
    waiting = submit(stack, inputs, prompt="hello", model="speech")
    posed = submit(stack, inputs, prompt="hello", model="pose")
    eventually(lambda: state(stack, posed)["status"] == "succeeded", 30, "the pose job")
    assert state(stack, posed)["checkpoint"]["name"] == "pose"
    assert state(stack, waiting)["status"] == "queued"

    httpx.post(f"{stack.url}/v1/jobs/{busy['id']}/cancel")
    eventually(lambda: state(stack, waiting)["status"] == "succeeded", 30, "the speech job")
    assert state(stack, waiting)["checkpoint"]["name"] == "speech"


def test_the_command_line_names_the_model_too(stack: RunningStack, inputs: Inputs, tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    arguments = ["--url", stack.url, *inputs.arguments(), "--model", "pose", "-o", str(video)]
    done = cointeract("generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert video.is_file()


def test_a_model_that_nobody_serves_is_refused(stack: RunningStack, inputs: Inputs) -> None:
    refused = submit(stack, inputs, prompt="hello", model="dance")
    assert refused["status_code"] == 422
    assert refused["code"] == "unknown_model"
    assert "pose" in str(refused)
