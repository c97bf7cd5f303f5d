"""`cointeract simulate`: the real queue and scheduling code on a real Redis, with simulated workers.

Workers render nothing: a job takes the time that its work takes at a made-up speed, by a virtual clock. What
is measured by the real clock is what each call to the queue costs. Journals are left out: they lie in
storage, one small file per claim.
"""

from __future__ import annotations

import heapq
import multiprocessing
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeVar, cast

from rq import Queue
from rq.serializers import JSONSerializer

from chaos.observed import percentile
from contract.entries import Submitted
from contract.job import InputFiles, JobState, Priority, Stage, StoredFile, utcnow
from contract.params import GenerationParams
from contract.settings import Settings
from contract.speed import Speed, Work
from contract.state import Job
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.queue import JobQueue
from jobs.redis_connection import connect
from jobs.redis_server import running_redis
from jobs.tickets import Ticket
from workers.reaper import PLAN_SHARE

SIMULATED: Final = "simulated"
HEAVY_OWNERS: Final = 10
"""So many owners have half of all jobs."""
SPEED: Final = Speed(per_step=0.2, per_clip=1.0, per_job=1.0)
"""About a minute for each clip of these jobs."""
LATE: Final = "late-"
"""Begins the names of owners who come while others wait."""
SHORTER: Final = (1000, 10_000)
"""Shorter queues at which the cost of a snapshot is measured, too."""
_CLOCK: Final = "simulated:now"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Simulation:
    workers: int = 1000
    jobs: int = 100_000
    owners: int = 1000
    claims: int = 10_000
    """Jobs that are started, of those that wait."""
    seed: int = 0


@dataclass
class Figures:
    """What was measured. Milliseconds are of the real clock, seconds of the virtual one."""

    simulation: Simulation
    enqueue_p50_ms: float = 0.0
    enqueue_p99_ms: float = 0.0
    claim_p50_ms: float = 0.0
    claim_p99_ms: float = 0.0
    claims_per_s: float = 0.0
    """Of one process, one after the other."""
    snapshot_ms: dict[int, float] = field(default_factory=dict)
    """Median of a snapshot, by the number of waiting jobs."""
    whole_snapshot_ms: float = 0.0
    """Of one that reads all waiting jobs, as each did before queues were planned."""
    plan_ms: float = 0.0
    """Median of a plan."""
    redis_bytes_per_job: float = 0.0
    served_worst: float = 0.0
    """Mean work that a waiting owner got, over that of the owner who got least: how much longer it waits."""
    served_fairness: float = 0.0
    """Jain's index of the work that waiting owners got: 1 if all got the same."""
    newcomer_wait_s: float = 0.0
    """Longest wait of an owner who came late with one job."""
    seconds: float = 0.0


class _SimulatedQueue(JobQueue):
    """By the virtual clock, which all processes read in Redis."""

    def _now(self) -> float:
        return float(cast(bytes, self.redis.get(_CLOCK) or b"0"))


def _beat_on(url: str, workers: int, interval_s: float) -> None:
    """Loads Redis as the heartbeats of that many workers do."""
    redis = connect(url)
    info = _info(0, None).model_dump_json()
    for tens in count():
        began = time.monotonic()
        for number in range(10 * tens, 10 * tens + 10):
            with redis.pipeline(transaction=False) as pipeline:
                pipeline.sadd("simulated:workers", f"w-{number % workers}")
                pipeline.set(f"simulated:worker:{number % workers}", info, px=4500)
                pipeline.set(f"simulated:progress:{number % workers}", info[:200], px=4500)
                pipeline.execute()
        time.sleep(max(0.0, 10 * interval_s / workers - (time.monotonic() - began)))


@contextmanager
def _heartbeats(url: str, workers: int) -> Iterator[None]:
    interval_s = Settings().heartbeat_s
    process = multiprocessing.get_context("spawn").Process(
        target=_beat_on, args=(url, workers, interval_s), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _info(number: int, running: RunningJob | None) -> WorkerInfo:
    return WorkerInfo(
        name=f"w-{number}", checkpoint=SIMULATED, device="cuda:0", ready=True, running=running, speed=SPEED
    )


def _job(number: int, owner: str, clips: int) -> Job:
    file = StoredFile(name="x", sha256="0" * 64, size=1, media_type="x/x")
    params = GenerationParams(
        prompts=("a",),
        negative_prompt="",
        width=832,
        height=480,
        num_inference_steps=20,
        guidance_scale=5.0,
        flow_shift=7.0,
        product_scale=1.0,
        seed=0,
        num_clips=clips,
        num_frames=80 * clips,
    )
    submitted = Submitted(
        at=utcnow(),
        owner=owner,
        checkpoint=SIMULATED,
        trained=False,
        params=params,
        inputs=InputFiles(person_image=file, audio=file),
        retention_s=60,
        cost=params.cost(),
    )
    return Job(id=f"job_{number:036d}", sequence=0, submitted=submitted, state=JobState.QUEUED)


@dataclass
class _Run:
    simulation: Simulation
    queue: _SimulatedQueue
    figures: Figures
    jobs: dict[str, Job] = field(default_factory=dict)
    now: float = 0.0
    plans: list[float] = field(default_factory=list)
    next_plan: float = 0.0
    served: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Work started by owner."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Waiting jobs by owner."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.simulation.seed)

    # Enqueueing

    def _owner(self) -> str:
        heavy = self.random.random() < 0.5
        number = (
            self.random.randrange(HEAVY_OWNERS) if heavy else self.random.randrange(self.simulation.owners)
        )
        return f"owner-{number:04d}"

    def enqueue(self) -> None:
        before = self._memory()
        times = []
        for number in range(self.simulation.jobs):
            job = _job(number, self._owner(), self.random.randint(1, 4))
            times.append(self._add(job))
            if number + 1 in SHORTER:
                self._measure_snapshots(number + 1)
        self.figures.enqueue_p50_ms, self.figures.enqueue_p99_ms = _percentiles(times)
        self.figures.redis_bytes_per_job = round((self._memory() - before) / self.simulation.jobs, 1)
        self._measure_snapshots(self.simulation.jobs)
        seconds, _ = _timed(lambda: self.queue._whole_snapshot(SIMULATED, []))
        self.figures.whole_snapshot_ms = round(1000 * seconds, 1)

    def _add(self, job: Job) -> float:
        self.jobs[job.id] = job
        self.waiting[job.submitted.owner] += 1
        seconds, _ = _timed(lambda: self.queue.announce(job))
        return seconds

    def _memory(self) -> int:
        return int(self.queue.redis.info("memory")["used_memory"])

    def _measure_snapshots(self, size: int) -> None:
        self.queue.plan(SIMULATED)
        times = [_timed(lambda: self.queue.snapshot(SIMULATED, max_age_s=0))[0] for _ in range(15)]
        self.figures.snapshot_ms[size] = round(1000 * statistics.median(times), 2)

    # Claiming

    def claim_all(self) -> None:
        free = [(0.01 * number, number) for number in range(self.simulation.workers)]
        rendered: dict[int, Job] = {}
        newcomers: dict[str, float] = {}
        waits: list[float] = []
        times: list[float] = []
        while len(times) < self.simulation.claims and free:
            self.now, number = heapq.heappop(free)
            self.queue.redis.set(_CLOCK, self.now)
            if (job := rendered.pop(number, None)) is not None:
                self.queue.bill(job, 1.0)
                self.queue.beat(_info(number, None))
            self._plan_now_and_then()
            if len(times) % 200 == 100:
                late = _job(self.simulation.jobs + len(times), f"{LATE}{len(times)}", 1)
                self._add(late)
                newcomers[late.id] = self.now
            seconds, job = _timed(partial(self._claim, number))
            times.append(seconds)
            if job is None:
                break
            if job.id in newcomers:
                waits.append(self.now - newcomers.pop(job.id))
            rendered[number] = job
            seconds = SPEED.seconds(Work.of(job.submitted.params)) * self.random.uniform(0.8, 1.2)
            heapq.heappush(free, (self.now + seconds, number))
        figures = self.figures
        figures.claims_per_s = round(len(times) / sum(times), 1)
        figures.claim_p50_ms, figures.claim_p99_ms = _percentiles(times)
        figures.plan_ms = round(1000 * statistics.median(self.plans), 1)
        waits += [self.now - since for since in newcomers.values()]
        figures.newcomer_wait_s = round(max(waits, default=0.0), 1)
        self._judge_fairness()

    def _plan_now_and_then(self) -> None:
        """Plan as often, by the virtual clock, as the reaper has time for by the real one."""
        if self.now >= self.next_plan:
            seconds, _ = _timed(lambda: self.queue.plan(SIMULATED))
            self.plans.append(seconds)
            self.next_plan = self.now + max(1.0, seconds / PLAN_SHARE)

    def _claim(self, number: int) -> Job | None:
        """What a worker does between two jobs, but for the journal."""
        tickets = self.queue.tickets(SIMULATED)
        found = Queue.dequeue_any(
            [tickets], None, connection=self.queue.redis, job_class=Ticket, serializer=JSONSerializer
        )
        if found is not None:
            found[0].delete()
        waiting = next(self.queue.startable(SIMULATED), None)
        if waiting is None:
            return None
        job = self.jobs[waiting.id]
        self.queue.withdraw(job.id, SIMULATED)
        self.queue.beat(_info(number, _running(job)))
        self.served[job.submitted.owner] += job.submitted.cost
        self.waiting[job.submitted.owner] -= 1
        return job

    def _judge_fairness(self) -> None:
        """Among owners that have had jobs waiting all the time."""
        always = [owner for owner, left in self.waiting.items() if left > 0 and not owner.startswith(LATE)]
        got = [self.served[owner] for owner in always]
        if got and min(got) > 0:
            mean = statistics.fmean(got)
            self.figures.served_worst = round(mean / min(got), 3)
            self.figures.served_fairness = round(sum(got) ** 2 / (len(got) * sum(one**2 for one in got)), 4)
        else:
            self.figures.served_worst = float("inf") if got else 1.0


def _running(job: Job) -> RunningJob:
    request = job.submitted
    return RunningJob(
        job_id=job.id,
        attempt=1,
        owner=request.owner,
        priority=Priority.NORMAL,
        cost=request.cost,
        work=Work.of(request.params),
        started_at=utcnow(),
        progress=LiveProgress(
            attempt=1, stage=Stage.DENOISING, num_clips=request.params.num_clips, step=1, num_steps=20
        ),
    )


def _timed(call: Callable[[], Value]) -> tuple[float, Value]:
    """Seconds that the call took, and what it returned."""
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    return tuple(round(1000 * (percentile(seconds, share) or 0.0), 2) for share in (0.5, 0.99))  # type: ignore[return-value]


def simulate(simulation: Simulation) -> Figures:
    """Fill a queue on a Redis of our own, and let simulated workers take jobs from it."""
    started = time.monotonic()
    figures = Figures(simulation)
    settings = Settings(lease_ttl_s=1e6)
    with (
        tempfile.TemporaryDirectory(prefix="cointeract-simulate-") as folder,
        running_redis(Path(folder)) as redis,
        _heartbeats(redis.url, simulation.workers),
    ):
        run = _Run(simulation, _SimulatedQueue(settings, redis.url), figures)
        for number in range(simulation.workers):
            run.queue.beat(_info(number, None))
        run.enqueue()
        run.claim_all()
    figures.seconds = round(time.monotonic() - started, 1)
    return figures
