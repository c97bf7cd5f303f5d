from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from contract.entries import Canceled, Interrupted, Started
from contract.job import CancelReason, JobState, utcnow
from contract.worker import WorkerInfo
from jobs.clock import HOLD_S, Clock, ClockNotTrusted
from jobs.identity import process_name
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings
from workers.reaper import Reaper
from workers.scratch import attempt_folder

pytestmark = pytest.mark.slow


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


def test_a_job_that_is_not_over_at_its_deadline_is_canceled_waiting_or_running(
    stack: Stack, reaper: Reaper
) -> None:
    waiting, running = stack.submit(cancel_after_s=1), stack.submit(cancel_after_s=1)
    patient, finished = stack.submit(cancel_after_s=3600), stack.submit(cancel_after_s=1)
    start(stack, running)
    stack.journal.append(stack.job(finished), Canceled(at=utcnow(), by="alice"))

    def canceled() -> bool:
        reaper.round()
        return {stack.job(job_id).state for job_id in (waiting, running)} == {JobState.CANCELED}

    eventually(canceled, 10, "cancel")
    assert {stack.job(job_id).cancel_reason for job_id in (waiting, running)} == {CancelReason.DEADLINE}
    assert stack.job(finished).cancel_reason is CancelReason.REQUEST
    assert stack.job(patient).state is JobState.QUEUED
    assert stack.queue.waiting_ids("fake") == {patient}


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


def test_strays_in_every_folder_hold_up_no_round(stack: Stack, reaper: Reaper) -> None:
    finished, waiting = stack.submit(retention_s=0), stack.submit(announce=False)
    stack.cancel(finished)
    for folder in ("done", "jobs", "scratch", "trash", "idempotency"):
        for name in (".keep", "lost+found", "notes.txt", "0-job_x", "x" * 200):
            (stack.store.root / folder / name).write_bytes(b"\xff")
    reaper.round()
    assert stack.queue.waiting_ids("fake") == {waiting}

    def gone() -> bool:
        reaper._next_expiry = 0.0
        reaper.round()
        return stack.store.list_names(f"jobs/{finished}") == []

    eventually(gone, 10, "removal")
    assert (stack.store.root / "done" / ".keep").exists()
    assert reaper.store.passed_over.counts()["stray"] > 5


def test_a_marker_of_the_past_removes_no_job_that_is_not_over(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit()
    stack.store.create(f"done/000000000001-{job_id}", b"")
    reaper.round()
    assert stack.job(job_id).state is JobState.QUEUED
    assert stack.store.list_names("done") == []
    reaper._next_scan = 0.0
    reaper.round()
    assert job_id in reaper.live


def test_a_worker_whose_clock_is_late_does_not_make_its_result_old(stack: Stack, reaper: Reaper) -> None:
    job_id = stack.submit(retention_s=3600)
    long_ago = utcnow() - timedelta(days=8)
    stack.journal.append(stack.job(job_id), Canceled(at=long_ago, by="alice"))
    reaper.round()
    reaper._next_expiry = 0.0
    reaper.round()
    assert stack.job(job_id).state is JobState.CANCELED


@pytest.mark.timeout(120)
@pytest.mark.parametrize("offset", ["+8d", "+2h", "-8d"])
def test_a_reaper_whose_clock_is_wrong_deletes_nothing_and_says_so(
    stack: Stack, reaper: Reaper, offset: str
) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("setting one process's clock wrong needs the program faketime")
    finished = stack.submit(retention_s=1800)
    stack.cancel(finished)
    running = stack.submit()
    start(stack, running)
    folder = stack.store.scratch() / attempt_folder(running, 1)
    leftover = stack.store.scratch() / "submit-abc"
    for path in (folder, leftover):
        path.mkdir()
    wrong = subprocess.Popen(
        ["faketime", "-f", offset, sys.executable, "-m", "workers.reaper"],
        env={
            **os.environ,
            "COINTERACT_DATA_DIR": str(stack.settings.data_dir),
            "COINTERACT_REDIS_URL": stack.redis.url,
            "COINTERACT_REAPER_INTERVAL_S": "0.1",
            "NO_FAKE_STAT": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert wrong.stderr is not None
        said = next(line for line in wrong.stderr if "clocks disagree" in line)
        assert "this machine says" in said
        assert "Redis says" in said
        reaper.round()  # knows the finished job, and has marked it
        eventually(lambda: stack.store.list_names("done"), what="the marker")
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            assert stack.job(finished).state is JobState.CANCELED
            assert folder.is_dir()
            assert leftover.is_dir()
            time.sleep(0.1)
    finally:
        os.killpg(wrong.pid, signal.SIGKILL)  # faketime and the reaper
        wrong.communicate()


def test_a_clock_that_jumps_is_not_trusted_for_an_hour(stack: Stack) -> None:
    began = time.time()
    jumped, since_boot = 0.0, 1000.0
    clock = Clock(stack.store, stack.queue.redis, lambda: began + jumped, lambda: since_boot)
    assert clock.now() == pytest.approx(began, abs=5)
    jumped = 8 * 86400.0
    with pytest.raises(ClockNotTrusted, match=r"jumped by \+691200 s"):
        clock.now()
    jumped = 0.0
    since_boot += HOLD_S
    began += HOLD_S  # so that neither jumps against the other now
    with pytest.raises(ClockNotTrusted, match="jumped by -691200 s"):
        clock.now()
    began -= HOLD_S
    with pytest.raises(ClockNotTrusted, match="jumped"):
        clock.now()
    since_boot += HOLD_S
    began += HOLD_S
    with pytest.raises(ClockNotTrusted, match="disagree"):
        clock.now()


def test_a_job_whose_journal_fails_to_be_read_is_passed_over_and_the_others_are_not(
    stack: Stack, reaper: Reaper
) -> None:
    bad, good = stack.submit(announce=False), stack.submit(announce=False)
    entry = stack.store.root / f"jobs/{bad}/journal/000001.json"
    entry.mkdir()
    reaper.round()
    assert stack.queue.waiting_ids("fake") == {good}
    assert reaper.store.passed_over.counts() == {"job": 1}
    entry.rmdir()
    reaper.store.passed_over.forget("job", bad)  # as after a minute
    reaper._next_scan = 0.0
    reaper.round()
    assert stack.queue.waiting_ids("fake") == {bad, good}
