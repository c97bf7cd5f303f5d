"""Which waiting job starts next, and when. Pure functions over values: no clock, no Redis.

Owners share the workers by weighted fair queueing. Each owner has a bill: the work that is running for it,
that was served to it recently, and that this order has granted it so far. The next job is the one that leaves
its owner with the smallest bill. So a burst of one owner delays another owner's single job by at most one
job, and no owner and no priority starves. Interrupted jobs come before all others.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from contract.job import Priority
from contract.speed import Speed, Work
from contract.state import Job
from contract.worker import RunningJob, WorkerInfo

PRICE = {Priority.HIGH: 0.25, Priority.NORMAL: 1.0, Priority.LOW: 4.0}
"""What a unit of work adds to its owner's bill. Between the jobs of one owner, priority is strict instead."""

_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


@dataclass(frozen=True)
class WaitingJob:
    """What scheduling must know of a waiting job."""

    id: str
    owner: str
    priority: Priority
    cost: float
    max_running: int | None = None
    begun: bool = False
    """The job was interrupted: its turn had come, its owner has paid, and users watch it."""
    work: Work = field(default_factory=lambda: Work(0.0, 0.0))
    """What is still to be done."""

    @staticmethod
    def of(job: Job) -> WaitingJob:
        request = job.submitted
        work = Work.of(request.params, request.params.num_clips - len(job.clips))
        return WaitingJob(
            job.id, request.owner, request.priority, request.cost, request.max_running, job.attempt > 0, work
        )


def start_order(
    waiting: Iterable[WaitingJob],
    running: Sequence[RunningJob] = (),
    served: Mapping[str, float] | None = None,
) -> list[WaitingJob]:
    """All of `waiting` in the order they will start. `served` holds the recent bills by owner.

    Sorting by id sorts by age.
    """
    bills = defaultdict(float, served or {})
    running_count = Counter(busy.owner for busy in running)
    for busy in running:
        bills[busy.owner] += busy.cost * PRICE[busy.priority]

    lines: dict[str, list[WaitingJob]] = defaultdict(list)
    ordered = []
    for candidate in sorted(waiting, key=lambda job: job.id):
        if candidate.begun:
            ordered.append(candidate)
            running_count[candidate.owner] += 1
        else:
            lines[candidate.owner].append(candidate)
    heap: list[tuple[bool, float, int, str]] = []

    def offer(owner: str) -> None:
        """Offer the next job of an owner. Owners at their limit of running jobs come after all others."""
        job = lines[owner][-1]
        at_limit = job.max_running is not None and running_count[owner] >= job.max_running
        heapq.heappush(
            heap, (at_limit, bills[owner] + job.cost * PRICE[job.priority], _RANK[job.priority], job.id)
        )

    by_id = {}
    for owner, line in lines.items():
        line.sort(key=lambda job: (_RANK[job.priority], job.id), reverse=True)
        by_id.update({job.id: job for job in line})
        offer(owner)
    while heap:
        _, bill, _, job_id = heapq.heappop(heap)
        job = by_id[job_id]
        ordered.append(job)
        lines[job.owner].pop()
        bills[job.owner] = bill
        running_count[job.owner] += 1
        if lines[job.owner]:
            offer(job.owner)
    return ordered


def may_start(job: WaitingJob, running: Iterable[RunningJob]) -> bool:
    """False while the owner has as many jobs running as it may."""
    return job.max_running is None or sum(other.owner == job.owner for other in running) < job.max_running


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue of one checkpoint at one moment."""

    taken_at: datetime
    waiting: Sequence[WaitingJob]
    """In the order they will start. Of a long queue only the first."""
    workers: Sequence[WorkerInfo]
    speed: Speed | None
    """The measured speed of a worker; None before the first measurement."""
    total: int | None = None
    """How many jobs wait, if `waiting` has not all of them."""

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return len(self.waiting) if self.total is None else self.total

    @property
    def running(self) -> list[RunningJob]:
        return [worker.running for worker in self.workers if worker.running is not None]

    def position(self, job_id: str) -> int | None:
        """1 for the job that starts next; None if the job is not waiting."""
        return self._positions.get(job_id)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {job.id: place for place, job in enumerate(self.waiting, start=1)}

    def estimate_beyond(self, place: int, work: Work) -> tuple[datetime, datetime] | None:
        """When a job behind those in `waiting` starts and finishes, if those before it are like the first."""
        if self.speed is None or not self.workers or not self.waiting:
            return None
        mean = sum(self.speed.seconds(job.work) for job in self.waiting) / len(self.waiting)
        start = (place - 1) * mean / len(self.workers)
        try:
            began = self.taken_at + timedelta(seconds=start)
            return began, began + timedelta(seconds=self.speed.seconds(work))
        except (OverflowError, ValueError):
            return None

    def estimate(self, job_id: str) -> tuple[datetime, datetime] | None:
        """When the job starts, or started, and when it finishes if nothing else is submitted. None if that
        is not known.
        """
        return self._estimates.get(job_id)

    @cached_property
    def _estimates(self) -> dict[str, tuple[datetime, datetime]]:
        """Of each job that runs or waits. All at once: a list asks for many."""
        found: dict[str, tuple[datetime, datetime]] = {}
        with suppress(OverflowError, ValueError):  # hints in Redis that nobody would call an estimate
            for job_id, times in self._forecast():
                found.setdefault(job_id, times)
        return found

    def _forecast(self) -> Iterator[tuple[str, tuple[datetime, datetime]]]:
        if self.speed is None or not self.workers:
            return
        free_at = []
        for worker in self.workers:
            remaining = 0.0
            if job := worker.running:
                done = job.fraction_done(self.taken_at)
                remaining = (1 - done) * self.speed.seconds(job.work) if job.work is not None else 0.0
                yield job.job_id, (job.started_at, self.taken_at + timedelta(seconds=remaining))
            free_at.append(remaining)
        heapq.heapify(free_at)
        for waiting in self.waiting:
            start = free_at[0]
            finish = start + self.speed.seconds(waiting.work)
            heapq.heapreplace(free_at, finish)
            begins, ends = (self.taken_at + timedelta(seconds=seconds) for seconds in (start, finish))
            yield waiting.id, (begins, ends)
