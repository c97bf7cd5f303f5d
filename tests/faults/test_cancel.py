"""Cancel is final from every state and frees the worker within one denoising step."""

from __future__ import annotations

import time

import pytest

from contract.entries import Canceled, Started
from contract.job import JobState
from jobs.usage import SpentUsage
from tests.faults.conftest import StackFactory
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow


def test_a_queued_job_that_is_canceled_never_starts(make_stack: StackFactory) -> None:
    stack = make_stack()
    canceled = stack.submit()
    stack.cancel(canceled)
    stack.start_reaper()
    stack.start_worker()
    stack.wait(stack.submit())
    assert not any(isinstance(entry, Started) for entry in stack.entries(canceled))
    assert stack.job(canceled).state is JobState.CANCELED
    eventually(lambda: not stack.queue.waiting_ids(stack.checkpoint), what="an empty waiting set")


def test_a_running_job_that_is_canceled_frees_the_worker_within_a_step_and_keeps_its_clips(
    make_stack: StackFactory,
) -> None:
    step_s = 0.4
    stack = make_stack(seconds_per_step=step_s)
    stack.start_reaper()
    stack.start_worker()
    job_id = stack.submit(num_clips=50, steps=4)
    clip = stack.wait_clips(job_id, 1).clips[0]
    stack.cancel(job_id)
    canceled_at = time.monotonic()
    eventually(lambda: all(worker.running is None for worker in stack.queue.workers()), what="a free worker")
    assert time.monotonic() - canceled_at < 2 * step_s + 1.0
    assert stack.wait(stack.submit(num_clips=1)).attempt == 1
    entries = stack.entries(job_id)
    assert isinstance(entries[-1], Canceled)
    assert stack.job(job_id).clips[0] == clip
    stack.content(job_id, clip.video)
    (name,) = stack.store.list_names("usage")
    broken_off = SpentUsage.stored(stack.store.read(f"usage/{name}") or b"")
    assert name.startswith(job_id)
    assert broken_off.owner == stack.job(job_id).submitted.owner
    assert 0 < broken_off.gpu_seconds < 60


def test_a_removed_job_frees_the_worker_and_leaves_nothing_behind(make_stack: StackFactory) -> None:
    stack = make_stack()
    stack.start_reaper()
    stack.start_worker()
    job_id = stack.submit(num_clips=200)
    stack.wait_clips(job_id, 1)
    stack.store.remove_folder(f"jobs/{job_id}")
    stack.wait(stack.submit(num_clips=1))
    assert len(stack.store.list_names("usage")) == 1, "a clip that a deletion breaks off counts"
    assert stack.store.list_names("jobs/" + job_id) == []
    assert [path for path in stack.store.scratch().iterdir() if job_id in path.name] == []
