"""A worker that is drained before its end loses no clip. Real processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.entries import Interrupted
from contract.processes import own_process
from contract.settings import as_environment
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.create(tmp_path, FakeSettings(seconds_per_step=0.2, media=False))
    yield stack
    stack.close()


def drain(stack: Stack, *arguments: str) -> int:
    settings = stack.settings.model_dump() | {"redis_url": stack.redis.url}
    command = own_process("cli.app", "drain", *arguments)
    return subprocess.run(
        command, env={**os.environ, **as_environment(settings)}, timeout=60, check=False
    ).returncode


def test_a_drained_worker_ends_between_two_clips_and_the_job_goes_on_elsewhere(stack: Stack) -> None:
    stack.start_reaper()
    worker = stack.start_worker("first")
    job_id = stack.submit(num_clips=4, steps=15)  # 3 s per clip
    stack.wait_clips(job_id, 1)
    assert drain(stack) == 0
    worker.terminate()
    assert worker.wait(20) == 0
    handed_back = stack.job(job_id)
    assert 2 <= len(handed_back.clips) < 4, "the clip that was begun is kept, the rest is for others"
    [entry] = [entry for entry in stack.entries(job_id) if isinstance(entry, Interrupted)]
    assert (entry.reason, entry.burns_attempt) == ("shutdown", False)
    stack.start_worker("second")
    job = stack.wait(job_id, timeout_s=60)
    assert [clip.clip for clip in job.clips] == [0, 1, 2, 3]
    assert job.clips[: len(handed_back.clips)] == handed_back.clips


def test_draining_ends_at_once_where_nothing_is_rendered_and_gives_up_in_time(stack: Stack) -> None:
    assert drain(stack) == 0
    stack.start_worker()
    stack.submit("fault:hang")
    eventually(lambda: any(worker.running for worker in stack.queue.workers()), what="the job's start")
    assert drain(stack, "--seconds", "1") == 1
