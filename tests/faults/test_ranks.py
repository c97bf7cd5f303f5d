"""A worker on several devices: its ranks are killed, stopped and stuck; jobs go on.

Most of this is about processes, so the engine is the fake one, whose other ranks do nothing. The last tests
render with real networks.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from contract.entries import Interrupted
from contract.job import JobState
from model.checkpoints.tiny import write_tiny_checkpoint
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually, process_state

pytestmark = pytest.mark.slow

THREE = "cpu,cpu,cpu"


def interruptions(stack: Stack, job_id: str) -> list[Interrupted]:
    return [entry for entry in stack.entries(job_id) if isinstance(entry, Interrupted)]


def wait_for_new_ranks(stack: Stack, worker: subprocess.Popen[bytes], old: list[int]) -> list[int]:
    """All of them are replaced."""

    def replaced() -> list[int] | None:
        found = stack.ranks_of(worker, 1)
        return found if len(found) == len(old) and not set(found) & set(old) else None

    return eventually(replaced, what="ranks that are all new")


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_killed_rank_ends_the_attempt_and_its_job_goes_on_behind_its_last_clip(
    make_stack: StackFactory, victim: int
) -> None:
    stack = make_stack(seconds_per_step=0.1)
    stack.start_reaper()
    worker = stack.start_worker(devices=THREE)
    ranks = stack.ranks_of(worker, 3)
    job_id = stack.submit(num_clips=3, seed=7)
    first = stack.wait_clips(job_id, 1).clips[0]
    os.kill(ranks[victim], signal.SIGKILL)
    job = stack.wait(job_id)

    assert (job.attempt, job.burned_attempts) == (2, 1)
    assert job.clips[0] == first
    [interruption] = interruptions(stack, job_id)
    assert interruption.reason == "child_died"
    assert "SIGKILL" in interruption.message
    assert (f"rank {victim} (cpu) was killed" in interruption.message) == (victim > 0)
    wait_for_new_ranks(stack, worker, ranks)
    unbroken = stack.submit(num_clips=3, seed=7)
    assert stack.content(job_id, job.video) == stack.content(unbroken, stack.wait(unbroken).video)


def test_a_rank_that_dies_while_idle_is_replaced_and_so_are_the_others(make_stack: StackFactory) -> None:
    stack = make_stack()
    stack.start_reaper()
    worker = stack.start_worker(devices=THREE)
    stack.wait(stack.submit(num_clips=1))
    [alive] = stack.queue.workers()
    assert alive.device == THREE
    ranks = stack.ranks_of(worker, 3)
    os.kill(ranks[2], signal.SIGKILL)
    wait_for_new_ranks(stack, worker, ranks)
    assert stack.wait(stack.submit(num_clips=1)).attempt == 1


def test_a_stopped_worker_puts_its_job_back_and_leaves_no_rank_behind(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.2)
    worker = stack.start_worker(devices=THREE)
    job_id = stack.submit(num_clips=2)
    stack.wait_clips(job_id, 1)
    ranks = stack.ranks_of(worker, 3)
    worker.terminate()
    assert worker.wait(timeout=6) == 0
    job = stack.job(job_id)
    assert (job.state, job.burned_attempts) == (JobState.QUEUED, 0)
    assert {process_state(rank) for rank in ranks} == {None}


def test_all_ranks_die_with_their_supervisor(make_stack: StackFactory) -> None:
    stack = make_stack()
    worker = stack.start_worker(devices=THREE)
    ranks = stack.ranks_of(worker, 3)
    worker.kill()
    worker.wait()
    eventually(
        lambda: all(process_state(rank) in (None, "Z") for rank in ranks), 20.0, "the end of the orphans"
    )


# With real networks


@pytest.fixture
def real(make_stack: StackFactory) -> Stack:
    stack = make_stack(stall_timeout_s=600.0, provenance=False)
    write_tiny_checkpoint(stack.folder / "tiny", seed=0)
    stack.checkpoint_folder, stack.checkpoint, stack.side = stack.folder / "tiny", "tiny-random", 64
    return stack


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_two_real_ranks_resume_behind_a_finished_clip_and_give_the_same_bytes(
    real: Stack, victim: int
) -> None:
    real.start_reaper()
    worker = real.start_worker(devices="cpu,cpu")
    broken = real.submit("a person speaks", num_clips=2, steps=2, seed=3)
    real.wait_clips(broken, 1, timeout_s=300)
    os.kill(real.ranks_of(worker, 2)[victim], signal.SIGKILL)
    job = real.wait(broken, timeout_s=300)
    assert (job.attempt, [clip.attempt for clip in job.clips]) == (2, [1, 2])
    [interruption] = interruptions(real, broken)
    assert interruption.reason == "child_died"
    assert ("rank 1 (cpu) was killed" in interruption.message) == (victim == 1)

    unbroken = real.submit("a person speaks", num_clips=2, steps=2, seed=3)
    reference = real.wait(unbroken, timeout_s=300)
    assert real.content(broken, job.video) == real.content(unbroken, reference.video)


@pytest.mark.timeout(900)
def test_a_canceled_job_frees_both_ranks_within_a_step_for_the_next(real: Stack) -> None:
    real.start_reaper()
    worker = real.start_worker(devices="cpu,cpu")
    canceled = real.submit(num_clips=1, steps=1000)
    ranks = real.ranks_of(worker, 2)

    def step() -> int:
        running = [worker.running for worker in real.queue.workers()]
        return max((job.progress.step for job in running if job is not None), default=0)

    eventually(lambda: step() > 1, 300.0, "the second step")
    real.cancel(canceled)
    eventually(lambda: all(w.running is None for w in real.queue.workers()), 60.0, "a free worker")
    # Far from its thousandth step it makes another video, in the same processes.
    assert real.wait(real.submit(num_clips=1, steps=1), timeout_s=300).attempt == 1
    assert real.ranks_of(worker, 2) == ranks


@pytest.mark.timeout(900)
def test_a_stopped_rank_is_noticed_named_and_replaced(make_stack: StackFactory) -> None:
    stack = make_stack(stall_timeout_s=30.0)
    write_tiny_checkpoint(stack.folder / "tiny", seed=0)
    stack.checkpoint_folder, stack.checkpoint = stack.folder / "tiny", "tiny-random"
    stack.start_reaper()
    worker = stack.start_worker(devices="cpu,cpu")
    job_id = stack.submit(num_clips=2, steps=2)
    stack.wait_clips(job_id, 1, timeout_s=300)
    stopped = stack.ranks_of(worker, 2)[1]
    os.kill(stopped, signal.SIGSTOP)
    job = stack.wait(job_id, timeout_s=400)
    assert (job.attempt, [clip.attempt for clip in job.clips]) == (2, [1, 2])
    [interruption] = interruptions(stack, job_id)
    assert interruption.reason == "stalled"
    assert "rank 1 (cpu) had been stopped" in interruption.message
    assert process_state(stopped) is None


@pytest.mark.timeout(300)
def test_more_devices_than_the_network_can_use_are_a_problem_that_is_told(real: Stack) -> None:
    real.start_worker(devices=",".join(["cpu"] * 5))

    def problem() -> str | None:
        return next((worker.problem for worker in real.queue.workers()), None)

    assert "5 devices cannot share a network of 4 attention heads" in eventually(
        problem, 200.0, "the problem"
    )
