from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from contract.entries import Canceled, Interrupted, Started
from contract.job import JobState, utcnow
from contract.worker import WorkerInfo
from jobs.identity import process_name
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings
from workers.reaper import Reaper


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.create(tmp_path, FakeSettings(media=False), lease_ttl_s=0.5, heartbeat_s=0.1)
    yield stack
    stack.close()


@pytest.fixture
def reaper(stack: Stack) -> Reaper:
    return Reaper(stack.settings, stack.store, stack.queue)


def start(stack: Stack, job_id: str) -> None:
    """A claim by a worker that nobody ever hears of."""
    job = stack.job(job_id)
    stack.journal.append(job, Started(at=utcnow(), attempt=job.attempt + 1, worker="ghost"))
    stack.queue.withdraw(job_id, "fake")


def rounds_until(reaper: Reaper, stack: Stack, job_id: str, state: JobState) -> None:
    def reached() -> bool:
        reaper.round()
        return stack.job(job_id).state is state

    eventually(reached, 10, state)


def test_unannounced_jobs_are_announced_with_a_ticket_each(stack: Stack, reaper: Reaper) -> None:
    jobs = {stack.submit(announce=False) for _ in range(3)}
    reaper.round()
    assert stack.queue.waiting_ids("fake") == jobs
    assert stack.queue.tickets("fake").count == 3


def test_what_does_not_wait_any_more_is_taken_off_the_queue(stack: Stack, reaper: Reaper) -> None:
    canceled, removed, waiting = (stack.submit() for _ in range(3))
    stack.cancel(canceled)
    stack.store.remove_folder(f"jobs/{removed}")
    reaper.round()
    assert stack.queue.waiting_ids("fake") == {waiting}


def test_an_attempt_nobody_has_heard_of_is_ended_after_the_grace(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit()
    start(stack, job_id)
    reaper.round()
    assert stack.job(job_id).state is JobState.PROCESSING, "not at first sight"
    rounds_until(reaper, stack, job_id, JobState.QUEUED)
    entry = stack.entries(job_id)[-1]
    assert isinstance(entry, Interrupted)
    assert (entry.reason, entry.burns_attempt) == ("worker_lost", True)
    assert "ghost" in entry.message
    assert job_id in stack.queue.waiting_ids("fake")


def test_a_killed_worker_is_off_the_list_long_before_its_lease_is_over(tmp_path: Path) -> None:
    stack = Stack.create(tmp_path, FakeSettings(media=False), lease_ttl_s=600)
    try:
        with subprocess.Popen(["sleep", "600"]) as process:
            alive = WorkerInfo(name=process_name("alive"), checkpoint="fake", device="cpu")
            start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
            space = alive.name.partition(".")[2].partition("-")[0]
            killed = alive.model_copy(update={"name": f"killed.{space}-{process.pid}-{start}"})
            stack.queue.beat(alive)
            stack.queue.beat(killed)
            reaper = Reaper(stack.settings, stack.store, stack.queue)
            reaper.round()
            assert {worker.name for worker in stack.queue.workers()} == {alive.name, killed.name}
            process.kill()
        reaper.round()
        assert [worker.name for worker in stack.queue.workers()] == [alive.name]
    finally:
        stack.close()


def test_an_attempt_is_not_ended_while_redis_is_away(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit()
    start(stack, job_id)
    reaper.round()
    stack.redis.stop()
    with pytest.raises(RedisError):
        stack.queue.ping()
    for _ in range(5):
        reaper.round()
    assert stack.job(job_id).state is JobState.PROCESSING
    stack.redis.start()
    reaper.round()
    assert stack.job(job_id).state is JobState.PROCESSING, "the grace begins anew"


def test_a_job_whose_worker_keeps_vanishing_fails_with_the_reason(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit()
    for _ in range(stack.settings.max_attempts - 1):
        start(stack, job_id)
        rounds_until(reaper, stack, job_id, JobState.QUEUED)
    start(stack, job_id)
    rounds_until(reaper, stack, job_id, JobState.FAILED)
    error = stack.job(job_id).error
    assert error is not None
    assert error.code == "worker_lost"


def test_finished_jobs_are_removed_when_their_time_is_up_and_not_before(stack: Stack, reaper: Reaper) -> None:
    expired, kept = stack.submit(retention_s=0), stack.submit(retention_s=3600)
    for job_id in (expired, kept):
        stack.journal.append(stack.job(job_id), Canceled(at=utcnow(), by="alice"))
    reaper.round()
    assert reaper.live == {}, "a round costs nothing for finished jobs"

    def gone() -> bool:
        Reaper(stack.settings, stack.store, stack.queue).round()
        return stack.store.list_names("jobs") == [kept]

    eventually(gone, 10, "removal")
    assert [name.partition("-")[2] for name in stack.store.list_names("done")] == [kept]


def test_a_job_that_a_user_deletes_is_forgotten(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit()
    reaper.round()
    stack.store.remove_folder(f"jobs/{job_id}")
    reaper.round()
    assert reaper.live == {}
    assert stack.queue.waiting_ids(stack.checkpoint) == set()


def test_a_damaged_journal_is_left_alone_and_harms_no_other_job(
    stack: Stack, reaper: Reaper, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, fine = stack.submit(announce=False), stack.submit(announce=False)
    stack.store.create(f"jobs/{damaged}/journal/000001.json", b"not an entry")
    reaper.round()
    reaper.round()
    assert stack.queue.waiting_ids("fake") == {fine}
    assert [record.job_id for record in caplog.records if "cannot be read" in record.message] == [damaged]  # type: ignore[attr-defined]
    assert stack.store.exists(f"jobs/{damaged}/journal/000001.json")
