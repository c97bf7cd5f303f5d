"""Workers and their children are killed, stopped and stuck; jobs go on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from contract.entries import Interrupted, Started, Succeeded
from contract.job import JobState
from contract.memory import MemoryMode
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually, process_state
from workers.engines.fake import FAKE_FILE

pytestmark = pytest.mark.slow


def unbroken_video(stack: Stack, **request: int) -> bytes:
    """The bytes that a job gives when nothing happens to it."""
    job_id = stack.submit(**request)
    return stack.content(job_id, stack.wait(job_id).video)


@pytest.mark.parametrize("media", [False, True], ids=["synthetic clips", "real clips"])
def test_a_killed_childs_job_goes_on_behind_its_last_clip_and_ends_in_the_same_bytes(
    make_stack: StackFactory, media: bool
) -> None:
    stack = make_stack(media=media, seconds_per_step=0.1, provenance=False)  # no two signatures are the same
    stack.start_reaper()
    worker = stack.start_worker()
    job_id = stack.submit(num_clips=3, seed=7)
    before = stack.wait_clips(job_id, 1).clips[0]
    os.kill(stack.child_of(worker), signal.SIGKILL)
    job = stack.wait(job_id)

    assert (job.attempt, job.burned_attempts) == (2, 1)
    assert job.clips[0] == before
    stack.content(job_id, job.clips[0].video)
    assert [clip.clip for clip in job.clips] == [0, 1, 2]
    [interruption] = [entry for entry in stack.entries(job_id) if isinstance(entry, Interrupted)]
    assert interruption.reason == "child_died"
    assert "SIGKILL" in interruption.message
    assert stack.content(job_id, job.video) == unbroken_video(stack, num_clips=3, seed=7)


def test_a_killed_workers_child_dies_with_it_and_its_job_runs_elsewhere(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.1)
    stack.start_reaper()
    first = stack.start_worker("first")
    job_id = stack.submit(num_clips=6)
    stack.wait_clips(job_id, 1)
    child = stack.child_of(first)
    stack.start_worker("second")
    first.kill()
    first.wait()
    eventually(lambda: process_state(child) in (None, "Z"), 2.0, "the end of the orphan")
    job = stack.wait(job_id)

    [interruption] = [entry for entry in stack.entries(job_id) if isinstance(entry, Interrupted)]
    assert interruption.reason == "worker_lost"
    assert job.attempt == 2
    assert job.clips[0].attempt == 1, "the finished clip was not rendered again"


def test_a_worker_stopped_past_its_lease_publishes_nothing_when_it_wakes(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.1)
    stack.start_reaper()
    first = stack.start_worker("first")
    job_id = stack.submit(num_clips=6)
    stack.wait_clips(job_id, 1)
    child = stack.child_of(first)
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(child, signal.SIGSTOP)
    stack.start_worker("second")
    job = stack.wait(job_id)
    published = stack.content(job_id, job.video)
    os.kill(child, signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    # The woken worker proves that it has let go of the old job by taking another.
    others = [stack.submit() for _ in range(4)]
    finished = [stack.wait(other) for other in others]
    assert any(one.worker is None for one in finished)
    workers = {e.worker for other in others for e in stack.entries(other) if isinstance(e, Started)}
    assert any(worker.startswith("first") for worker in workers), workers

    entries = stack.entries(job_id)
    assert sum(isinstance(entry, Succeeded) for entry in entries) == 1
    assert isinstance(entries[-1], Succeeded)
    assert entries[-1].attempt == 2
    assert stack.content(job_id, stack.job(job_id).video) == published


def test_a_call_that_holds_the_interpreter_lock_for_three_leases_is_left_alone(
    make_stack: StackFactory,
) -> None:
    stack = make_stack()
    stack.start_reaper()
    stack.start_worker("first")
    stack.start_worker("second")
    job_id = stack.submit("fault:gil=3.2", "a person speaks")
    job = stack.wait(job_id)
    assert (job.attempt, job.burned_attempts) == (1, 0)


def test_a_poison_job_fails_with_the_reason_and_the_next_one_runs(make_stack: StackFactory) -> None:
    stack = make_stack(max_attempts=3)
    stack.start_reaper()
    stack.start_worker()
    poison = stack.submit("fault:kill")
    innocent = stack.submit(owner="bob")
    job = stack.wait(poison, JobState.FAILED)
    assert stack.attempts(poison) == 3
    assert job.error is not None
    assert job.error.code == "child_died"
    assert "SIGKILL" in job.error.message
    assert "attempt 3 of 3" in job.error.message
    stack.wait(innocent)


def test_sigterm_puts_the_job_back_without_burning_an_attempt(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.2)
    stack.start_reaper()
    worker = stack.start_worker("first")
    job_id = stack.submit(num_clips=2)
    stack.wait_clips(job_id, 1)
    worker.terminate()
    assert worker.wait(timeout=4) == 0
    job = stack.job(job_id)
    assert (job.state, job.burned_attempts) == (JobState.QUEUED, 0)
    entry = stack.entries(job_id)[-1]
    assert isinstance(entry, Interrupted)
    assert entry.reason == "shutdown"
    assert stack.queue.workers() == [], "a stopped worker says goodbye"
    stack.start_worker("second")
    assert stack.wait(job_id).attempt == 2


def test_a_child_that_cannot_stop_is_killed_after_its_grace_and_nothing_is_lost(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(stop_grace_s=0.5)
    worker = stack.start_worker()
    job_id = stack.submit("fault:hang")
    eventually(lambda: stack.job(job_id).state is JobState.PROCESSING, what="the start")
    worker.terminate()
    assert worker.wait(timeout=4) == 0
    job = stack.job(job_id)
    assert (job.state, job.burned_attempts) == (JobState.QUEUED, 0)


def test_a_render_without_progress_is_stopped_and_reported_as_stalled(make_stack: StackFactory) -> None:
    stack = make_stack(stall_timeout_s=6.0, max_attempts=1)
    stack.start_reaper()
    stack.start_worker()
    job = stack.wait(stack.submit("fault:hang"), JobState.FAILED)
    assert job.error is not None
    assert (job.error.code, job.error.stage) == ("stalled", "encoding")


def test_running_out_of_device_memory_is_named_with_advice_and_restarts_the_child(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(max_attempts=2)
    stack.start_reaper()
    worker = stack.start_worker()
    child = stack.child_of(worker)
    job = stack.wait(stack.submit("fault:oom"), JobState.FAILED)
    assert job.error is not None
    assert job.error.code == "out_of_memory"
    assert "smaller size" in job.error.message
    stack.wait(stack.submit())
    assert stack.child_of(worker) != child


def test_a_model_that_cannot_be_loaded_is_reported_with_its_cause_and_tried_until_it_can(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(stall_timeout_s=200.0)  # importing torch takes long on a busy machine
    fake, away = stack.checkpoint_folder / FAKE_FILE, stack.folder / "away"
    fake.rename(away)  # now it passes for real weights, which are not there
    stack.start_worker()
    job_id = stack.submit()

    def problem() -> str | None:
        return next((worker.problem for worker in stack.queue.workers()), None)

    assert "model_index.json" in eventually(problem, 100.0, "the worker's problem")
    assert stack.job(job_id).state is JobState.QUEUED
    away.rename(fake)
    stack.wait(job_id)
    eventually(lambda: problem() is None, 5.0, "the end of the problem")


def test_a_child_that_keeps_dying_is_told_of_until_one_has_done_its_work(make_stack: StackFactory) -> None:
    stack = make_stack(max_attempts=2)
    stack.start_worker()

    def problem() -> str | None:
        return next((worker.problem for worker in stack.queue.workers()), None)

    first = stack.submit("fault:kill")
    stack.wait(first, JobState.FAILED)
    assert problem() is None, "what one job does is no loop"
    stack.submit("fault:kill")
    told = eventually(problem, what="a word about the loop")
    assert "keeps dying, 4 times in a row by now: it was killed (SIGKILL" in told
    stack.wait(stack.submit())
    eventually(lambda: problem() is None, 5.0, "the end of the problem")


def test_the_child_of_a_frozen_supervisor_claims_nothing_and_no_job_loses_an_attempt(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(seconds_per_step=0.1, max_attempts=2)
    stack.start_reaper()
    worker = stack.start_worker()
    running = stack.submit(num_clips=10)
    stack.wait_clips(running, 1)
    os.kill(worker.pid, signal.SIGSTOP)
    waiting = [stack.submit(owner=f"owner-{n}") for n in range(5)]
    eventually(lambda: stack.job(running).state is JobState.QUEUED, what="the reaper taking the job back")
    frozen_until = time.monotonic() + 8 * stack.settings.lease_ttl_s
    while time.monotonic() < frozen_until:
        assert stack.attempts(running) == 1
        assert [stack.attempts(job_id) for job_id in waiting] == [0] * 5
        time.sleep(0.1)
    os.kill(worker.pid, signal.SIGCONT)
    for job_id in waiting:
        job = stack.wait(job_id)
        assert (job.attempt, job.burned_attempts) == (1, 0)
    job = stack.wait(running)
    assert (job.attempt, job.burned_attempts) == (2, 0)
    assert job.clips[0].attempt == 1
    reasons = [entry.reason for entry in stack.entries(running) if isinstance(entry, Interrupted)]
    assert reasons == ["worker_lost"]


def test_a_job_that_needs_more_memory_goes_on_in_the_next_mode_without_burning_an_attempt(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(max_attempts=1)
    stack.start_reaper()
    worker = stack.start_worker()
    first = stack.child_of(worker)
    job = stack.wait(stack.submit("a person speaks", "fault:tight=1", num_clips=2))
    assert (job.attempt, job.burned_attempts, job.memory_mode) == (2, 0, MemoryMode.TEXT_OFFLOAD)
    interrupted = next(entry for entry in stack.entries(job.id) if isinstance(entry, Interrupted))
    assert (interrupted.reason, interrupted.burns_attempt) == ("out_of_memory", False)
    assert "in mode resident; the worker goes on in mode text-offload" in interrupted.message
    assert [clip.attempt for clip in job.clips] == [1, 2], "the first clip was not rendered again"
    assert stack.child_of(worker) != first
    info = eventually(lambda: next(iter(stack.queue.workers()), None), what="the worker's word")
    assert info.memory_mode is MemoryMode.TEXT_OFFLOAD
    # Such jobs do not fall twice: the worker has stayed in its mode.
    assert stack.wait(stack.submit("fault:tight=1")).attempt == 1


def test_a_job_falls_once_for_nothing_and_then_its_attempts_count(make_stack: StackFactory) -> None:
    stack = make_stack(max_attempts=2)
    stack.start_reaper()
    stack.start_worker()
    job = stack.wait(stack.submit("fault:tight=2"))
    assert (job.attempt, job.burned_attempts, job.memory_mode) == (3, 1, MemoryMode.OFFLOAD)
    poison = stack.wait(stack.submit("fault:oom"), JobState.FAILED)
    assert poison.error is not None
    assert poison.memory_mode is None, "there is no mode left to fall to"
    assert (poison.attempt, poison.error.code) == (2, "out_of_memory")
