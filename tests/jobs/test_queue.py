from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from contract.job import JobState, Priority, Stage, utcnow
from contract.settings import Settings
from contract.speed import Speed
from contract.state import Job
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer, running_redis
from tests.jobs.test_journal import submitted


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def queue(redis: RedisServer, tmp_path: Path) -> JobQueue:
    queue = JobQueue(Settings(data_dir=tmp_path, lease_ttl_s=0.3), redis.url)
    queue.redis.flushall()
    return queue


def job(name: str, owner: str = "a", priority: Priority = Priority.NORMAL) -> Job:
    request = submitted().model_copy(update={"owner": owner, "priority": priority})
    return Job(id=name, sequence=0, submitted=request, state=JobState.QUEUED)


def worker(running: str | None = None) -> WorkerInfo:
    progress = LiveProgress(attempt=1, stage=Stage.DENOISING, clip=0, num_clips=2, step=1, num_steps=2)
    busy = running and RunningJob(
        job_id=running,
        attempt=1,
        owner="a",
        priority=Priority.NORMAL,
        cost=1,
        started_at=utcnow(),
        progress=progress,
    )
    return WorkerInfo(
        name="w",
        checkpoint="c",
        device="cpu",
        ready=True,
        running=busy or None,
        speed=Speed(per_step=0.0, per_clip=0.0, per_job=3.0),
    )


def test_announced_jobs_wait_in_the_order_they_will_start(queue: JobQueue) -> None:
    for one in (job("1"), job("2"), job("3", priority=Priority.HIGH), job("4", owner="b")):
        queue.announce(one)
    waiting = queue.snapshot("c", max_age_s=0)
    assert [entry.id for entry in waiting.waiting] == ["3", "4", "1", "2"]
    assert waiting.position("4") == 2
    assert queue.waiting_ids("c") == {"1", "2", "3", "4"}
    assert queue.tickets("c").count == 4


@pytest.fixture
def long_queue(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    """A queue that is too long to be read as a whole, of two owners, planned."""
    monkeypatch.setattr("jobs.queue.PLANNED_FROM", 10)
    monkeypatch.setattr("jobs.queue_plan.SEEN", 4)
    for number in range(20):
        queue.announce(job(f"{number:02d}", owner="a" if number < 15 else "b"))
    assert queue.plan("c")
    return queue


def seen(queue: JobQueue) -> list[str]:
    return [waiting.id for waiting in queue.snapshot("c", max_age_s=0).waiting]


def test_of_a_long_queue_everybody_reads_the_beginning_only_in_the_fair_order(long_queue: JobQueue) -> None:
    queue = long_queue
    reads = queue.redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    snapshot = queue.snapshot("c", max_age_s=0)
    assert [waiting.id for waiting in snapshot.waiting] == ["00", "15", "01", "16"]
    assert snapshot.count == 20
    assert queue.redis.info("commandstats")["cmdstat_hgetall"]["calls"] == reads, "not all was read"
    assert [queue.place(name, "c") for name in ("00", "15", "14")] == [1, 2, 20]
    assert queue.place("gone", "c") is None


def test_what_is_claimed_leaves_the_plan_and_what_comes_later_waits_behind_it(long_queue: JobQueue) -> None:
    queue = long_queue
    queue.withdraw("00", "c")
    queue.redis.hdel("cointeract:waiting:c", "15")  # by an older version, which knows no plan
    queue.announce(job("20", owner="new"))
    assert seen(queue) == ["01", "16", "02"], "one of the four that were read had gone"
    assert seen(queue) == ["01", "16", "02", "17"]
    assert queue.place("20", "c") == 19
    assert queue.plan("c")
    assert "20" in seen(queue), "the next plan has it"


def test_an_interrupted_job_goes_on_before_all_that_is_planned(long_queue: JobQueue) -> None:
    long_queue.announce(job("05").model_copy(update={"attempt": 1}))
    assert seen(long_queue)[0] == "05"


def test_jobs_of_an_owner_at_its_limit_are_passed_over_in_a_plan_too(
    long_queue: JobQueue,
) -> None:
    queue = long_queue
    limited = job("05")
    limited = limited.model_copy(
        update={"submitted": limited.submitted.model_copy(update={"max_running": 1})}
    )
    queue.announce(limited.model_copy(update={"attempt": 1}))
    queue.beat(worker(running="elsewhere"))  # of the owner "a"
    assert [waiting.id for waiting in queue.startable("c")] == ["00", "15", "01"]
    queue.redis.delete("cointeract:plan:c")
    assert len(list(queue.startable("c"))) == 19, "without a plan, too"


def test_without_a_plan_a_long_queue_is_read_as_a_whole(long_queue: JobQueue) -> None:
    long_queue.redis.delete("cointeract:plan:c")
    assert len(seen(long_queue)) == 20
    assert long_queue.plan("c")
    for number in range(4):  # all that a snapshot reads: nobody renews the plan
        long_queue.redis.hdel("cointeract:waiting:c", f"{number:02d}", f"{number + 15:02d}")
    assert seen(long_queue), "somebody may work"


def test_a_queue_that_is_short_again_has_no_plan(long_queue: JobQueue) -> None:
    for number in range(15):
        long_queue.withdraw(f"{number:02d}", "c")
    assert not long_queue.plan("c")
    assert not long_queue.redis.exists("cointeract:plan:c")
    assert seen(long_queue) == ["15", "16", "17", "18", "19"]


def test_a_job_far_behind_is_estimated_by_those_before_it(long_queue: JobQueue) -> None:
    long_queue.beat(worker())
    snapshot = long_queue.snapshot("c", max_age_s=0)
    found = snapshot.estimate_beyond(11, snapshot.waiting[0].work)
    assert found is not None
    assert [(at - snapshot.taken_at).total_seconds() for at in found] == [30.0, 33.0], (
        "ten jobs of 3 s before it"
    )


def test_a_withdrawn_job_waits_no_more(queue: JobQueue) -> None:
    queue.announce(job("1"))
    queue.withdraw("1", "c")
    assert queue.waiting_ids("c") == set()
    assert queue.snapshot("c", max_age_s=0).position("1") is None


def test_a_worker_is_live_for_its_lease_and_no_longer(queue: JobQueue) -> None:
    queue.beat(worker("1"))
    assert [info.name for info in queue.workers()] == ["w"]
    progress = queue.progress("1")
    assert progress is not None
    assert progress.percent() == 25.0
    deadline = time.monotonic() + 5
    while queue.workers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert queue.workers() == []
    assert queue.progress("1") is None


def test_a_retired_worker_is_gone_at_once(queue: JobQueue) -> None:
    queue.beat(worker())
    queue.retire("w")
    assert queue.workers() == []


def test_estimates_use_the_speed_that_a_worker_measured(queue: JobQueue) -> None:
    queue.announce(job("1"))
    queue.beat(worker())
    snapshot = queue.snapshot("c", max_age_s=0)
    estimate = snapshot.estimate("1")
    assert estimate is not None
    assert (estimate[1] - estimate[0]).total_seconds() == pytest.approx(3.0)


def test_missing_tickets_are_issued_and_surplus_ones_are_left(queue: JobQueue) -> None:
    queue.add_waiting([job("1"), job("2")])
    assert queue.top_up_tickets("c") == 2
    assert queue.top_up_tickets("c") == 0
    queue.withdraw("1", "c")
    assert queue.top_up_tickets("c") == 0
    assert queue.tickets("c").count == 2


def test_hints_that_make_no_sense_are_passed_over(queue: JobQueue) -> None:
    queue.announce(job("1"))
    queue.redis.hset(
        "cointeract:waiting:c", mapping={"2": "{}", "3": "[1]", "4": b"\xff", "5": '["a", "normal"]'}
    )
    queue.redis.sadd("cointeract:workers", "w")
    queue.redis.set("cointeract:worker:w", '{"from": "another version"}')
    queue.redis.set("cointeract:progress:1", "no json")
    queue.redis.zadd("cointeract:served:c", {"nonsense": time.time()})
    snapshot = queue.snapshot("c", max_age_s=0)
    assert [entry.id for entry in snapshot.waiting] == ["1"]
    assert snapshot.workers == []
    assert queue.progress("1") is None
    assert queue.waiting_ids("c") == {"1"}, "the reaper can enter them anew"


def test_served_work_counts_against_its_owner(queue: JobQueue) -> None:
    queue.announce(job("1", owner="a"))
    queue.announce(job("2", owner="b"))
    assert queue.snapshot("c", max_age_s=0).position("1") == 1
    queue.bill(job("0", owner="a"), fraction=1.0)
    assert queue.snapshot("c", max_age_s=0).position("1") == 2


def test_the_epoch_changes_when_redis_forgets(queue: JobQueue) -> None:
    before = queue.epoch()
    assert queue.epoch() == before
    queue.redis.flushall()
    assert queue.epoch() != before


def test_a_redis_that_is_away_is_an_error_within_seconds(tmp_path: Path) -> None:
    queue = JobQueue(Settings(data_dir=tmp_path), f"unix://{tmp_path}/nobody.sock")
    started = time.monotonic()
    for call in (queue.ping, queue.checkpoints, queue.workers, lambda: queue.announce(job("1"))):
        with pytest.raises(RedisError):
            call()
    assert time.monotonic() - started < 10


def test_a_frozen_redis_holds_up_many_askers_no_longer_than_one(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        queue = JobQueue(Settings(data_dir=tmp_path), server.url)
        queue.ping()
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        failed: list[float] = []

        def ask() -> None:
            with pytest.raises(RedisError):
                queue.snapshot("c")
            failed.append(time.monotonic() - started)

        askers = [threading.Thread(target=ask) for _ in range(10)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        server.process.send_signal(signal.SIGCONT)
    assert len(failed) == 10
    assert max(failed) < 8, "one after the other would have taken 20 s"


def test_the_embedded_redis_is_private_and_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        queue = JobQueue(Settings(data_dir=tmp_path), server.url)
        queue.announce(job("1"))
        assert server.folder.stat().st_mode & 0o077 == 0
        assert queue.redis.config_get("port") == {"port": "0"}
    with running_redis(tmp_path / "redis") as server:
        assert JobQueue(Settings(data_dir=tmp_path), server.url).waiting_ids("c") == {"1"}
