from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from contract.job import Priority, Stage
from contract.speed import Speed, Work
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.scheduling import QueueSnapshot, WaitingJob, may_start, start_order

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def waiting(
    name: str,
    owner: str = "a",
    priority: Priority = Priority.NORMAL,
    cost: float = 1.0,
    limit: int | None = None,
) -> WaitingJob:
    return WaitingJob(name, owner, priority, cost, limit, work=Work(cost, 0))


def running(name: str, owner: str = "a", cost: float = 1.0, percent: float = 0.0) -> RunningJob:
    progress = LiveProgress(attempt=1, stage=Stage.DENOISING, num_clips=1, step=int(percent), num_steps=100)
    return RunningJob(
        job_id=name,
        attempt=1,
        owner=owner,
        priority=Priority.NORMAL,
        cost=cost,
        work=Work(cost, 0),
        started_at=NOW,
        progress=progress,
    )


def order(
    *jobs: WaitingJob, busy: list[RunningJob] | None = None, served: dict[str, float] | None = None
) -> str:
    return " ".join(job.id for job in start_order(jobs, busy or [], served))


def test_jobs_of_one_owner_start_in_order_of_age() -> None:
    assert order(waiting("3"), waiting("1"), waiting("2")) == "1 2 3"


def test_within_one_owner_priority_is_strict() -> None:
    jobs = [waiting("1", priority=Priority.LOW), waiting("2"), waiting("3", priority=Priority.HIGH)]
    assert order(*jobs) == "3 2 1"


def test_a_burst_delays_another_owners_job_by_at_most_one() -> None:
    burst = [waiting(f"{n:03}", "greedy") for n in range(100)]
    assert order(*burst, waiting("999", "modest")).split()[:3] == ["000", "999", "001"]


def test_owners_take_turns() -> None:
    jobs = [waiting(f"{owner}{n}", owner) for owner in "abc" for n in range(3)]
    assert order(*jobs) == "a0 b0 c0 a1 b1 c1 a2 b2 c2"


def test_running_and_recently_served_work_counts_against_its_owner() -> None:
    assert order(waiting("1", "a"), waiting("2", "b"), busy=[running("0", "a")]) == "2 1"
    assert order(waiting("1", "a"), waiting("2", "b"), served={"a": 0.5}) == "2 1"


def test_large_jobs_are_charged_by_their_work() -> None:
    large = [waiting(f"1{n}", "film", cost=10) for n in range(2)]
    small = [waiting(f"2{n}", "clips", cost=2) for n in range(7)]
    assert order(*large, *small) == "20 21 22 23 10 24 25 26 11"


def test_a_stream_of_high_priority_does_not_starve_another_owners_normal_job() -> None:
    burst = [waiting(f"{n:03}", "greedy", Priority.HIGH) for n in range(100)]
    assert order(*burst, waiting("999", "modest")).split().index("999") == 4


def test_an_owner_at_its_limit_of_running_jobs_waits_behind_the_others() -> None:
    full = waiting("1", "a", limit=1)
    assert order(full, waiting("2", "b"), busy=[running("0", "a"), running("00", "b", cost=50)]) == "2 1"
    assert not may_start(full, [running("0", "a")])
    assert may_start(full, [running("0", "b")])
    assert may_start(waiting("2", "b"), [running("0", "b")])


def test_an_interrupted_job_goes_on_before_any_other_starts() -> None:
    interrupted = dataclasses.replace(waiting("5", "a", Priority.LOW, cost=50), begun=True)
    jobs = [waiting("1", "b", Priority.HIGH), waiting("2", "a"), interrupted]
    assert order(*jobs, served={"a": 100}) == "5 1 2"


def test_nothing_waiting_is_an_empty_order() -> None:
    assert start_order([]) == []


def snapshot(
    jobs: list[WaitingJob], busy: list[RunningJob | None], speed: float | None = 10.0
) -> QueueSnapshot:
    workers = [
        WorkerInfo(name=f"w{n}", checkpoint="c", device="cpu", ready=True, running=job)
        for n, job in enumerate(busy)
    ]
    measured = None if speed is None else Speed(per_step=speed, per_clip=0)
    return QueueSnapshot(NOW, jobs, workers, measured)


def seconds(estimate: tuple[datetime, datetime] | None) -> tuple[float, float] | None:
    return estimate and ((estimate[0] - NOW).total_seconds(), (estimate[1] - NOW).total_seconds())


def test_position_one_is_the_job_that_starts_next() -> None:
    queue = snapshot([waiting("1"), waiting("2")], [running("0")])
    assert [queue.position(name) for name in ("0", "1", "2")] == [None, 1, 2]


def test_estimates_follow_the_workers_that_become_free() -> None:
    queue = snapshot(
        [waiting("1", cost=4), waiting("2"), waiting("3")], [running("0", cost=2, percent=50), None]
    )
    assert seconds(queue.estimate("0")) == (0, 10)
    assert seconds(queue.estimate("1")) == (0, 40)
    assert seconds(queue.estimate("2")) == (10, 20)
    assert seconds(queue.estimate("3")) == (20, 30)


def test_without_workers_or_a_measured_speed_nothing_is_estimated() -> None:
    assert snapshot([waiting("1")], [None], speed=None).estimate("1") is None
    assert snapshot([waiting("1")], []).estimate("1") is None
    assert snapshot([], [None]).estimate("1") is None


def test_ordering_ten_thousand_jobs_keeps_every_job_once() -> None:
    jobs = [waiting(f"{n:05}", f"owner-{n % 97}", list(Priority)[n % 3], 1 + n % 5) for n in range(10_000)]
    ordered = start_order(jobs)
    assert sorted(job.id for job in ordered) == [job.id for job in jobs]
    assert ordered == start_order(reversed(jobs)), "the order does not depend on how the jobs are listed"
