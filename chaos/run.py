"""`cointeract chaos`: submits jobs over HTTP while it kills parts of a live stack, and counts faults.

The model is fake and fast. Everything else is what runs in production: API, journals, Redis, workers and
reaper under the same supervisor. Each submit carries an Idempotency-Key and is repeated until it is answered,
as a careful client does. Every promise is then checked against the journals and the bytes that were served.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from redis.exceptions import RedisError

from chaos.client import Answer, Client, NoAnswer, SubmitForm
from chaos.report import Report
from chaos.stack import InjectedFault, LiveStack, live_stack, resident_bytes
from contract.entries import Canceled, Failed, Interrupted, JournalEntry, Started, Succeeded
from contract.settings import Settings
from contract.state import Job
from jobs.identity import pid_of
from jobs.journal import JobNotFound
from workers.engines.fake import FakeSettings, synthetic_video

log = logging.getLogger(__name__)

FAULT_WEIGHTS = {"child": 7, "worker": 5, "api": 3, "reaper": 2, "redis": 2, "freeze": 1}
CALM_SHARE = 0.5
"""Share of the jobs that are submitted at full rate before the first fault, to measure latencies."""
SUBMIT_RATE = 50.0
STATUS_RATE = 20.0
CANCEL_EVERY = 20
"""One in so many jobs is canceled."""
STEPS_PER_JOB = 8
"""Two clips of four steps."""
RETRY_S = 0.2
FLOOD_CLIENTS = 64


@dataclass(frozen=True)
class Options:
    jobs: int = 1000
    kills: int = 100
    seconds: float = 300.0
    """Length of the part with faults."""
    workers: int = 4
    outage_s: float = 0.0
    """Seconds, in the middle of that part, during which Redis answers nobody."""
    overload_s: float = 0.0
    """Seconds for which the API is flooded afterwards."""
    seed: int = 0


@dataclass
class Observed:
    """What the clients have seen."""

    accepted: dict[str, str] = field(default_factory=dict)
    """Job id by idempotency key."""
    final: dict[str, str] = field(default_factory=dict)
    """Final state by job id, as first seen."""
    canceled: set[str] = field(default_factory=set)
    flipped: set[str] = field(default_factory=set)
    partial: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    calm_submits: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)
    calm_statuses: list[float] = field(default_factory=list)
    statuses: list[float] = field(default_factory=list)
    calm_cancels: list[float] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)

    def live(self) -> list[str]:
        return [job_id for job_id in self.accepted.values() if job_id not in self.final]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Chaos:
    """One run against one stack."""

    def __init__(self, stack: LiveStack, options: Options, client: Client) -> None:
        self.stack = stack
        self.options = options
        self.client = client
        self.random = random.Random(options.seed)
        self.seen = Observed()
        self.faults: list[InjectedFault] = []
        self._form = SubmitForm()
        self._ended = asyncio.Event()

    async def run(self) -> Report:
        started = time.monotonic()
        report = Report()
        calm = int(self.options.jobs * CALM_SHARE) if self.options.kills else self.options.jobs
        background = [
            asyncio.create_task(work()) for work in (self._supervise, self._watch, self._cancel_some)
        ]
        try:
            await self._submit_all(range(calm), SUBMIT_RATE, self.seen.calm_submits)
            rest = range(calm, self.options.jobs)
            rate = max(0.1, len(rest) / self.options.seconds)
            await asyncio.gather(
                self._submit_all(rest, rate, self.seen.submits), self._inject(self.options.kills)
            )
            await self._drain()
            if self.options.overload_s:
                await self._overload(report)
        finally:
            self._ended.set()
            for task in background:
                task.cancel()
            results = await asyncio.gather(*background, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        await self._judge(report)
        report.seconds = round(time.monotonic() - started, 1)
        return report

    # What clients do

    async def _submit_all(self, numbers: Sequence[int], rate: float, latencies: list[float]) -> None:
        began = time.monotonic()
        tasks = []
        for place, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, began + place / rate - time.monotonic()))
            tasks.append(asyncio.create_task(self._submit(number, latencies)))
        await asyncio.gather(*tasks)

    async def _submit(self, number: int, latencies: list[float]) -> None:
        """Submit one job, again and again until it is answered."""
        key = f"chaos-{self.options.seed}-{number}-{uuid4().hex[:8]}"
        body = self._form.body(prompt=f"a person speaks {number}", seed=str(number))

        async def post() -> Answer:
            started = time.monotonic()
            answer = await self.client.submit(body, key)
            latencies.append(time.monotonic() - started)
            return answer

        answer = await self._insist("submit", post, {202, 200})
        if answer is not None:
            self.seen.accepted[key] = answer.json()["id"]

    async def _insist(
        self, path: str, request: Callable[[], Awaitable[Answer]], wanted: set[int]
    ) -> Answer | None:
        """Repeat a request while the API is dead, starting or full; None, and a note, for other refusals."""
        while not self._ended.is_set():
            try:
                answer = await request()
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.status in wanted:
                return answer
            if answer.status not in (429, 503):
                self.seen.refused.append(f"{path}: {answer.status} {answer.body[:200]!r}")
                return None
            await asyncio.sleep(RETRY_S)
        return None

    async def _watch(self) -> None:
        """Ask for random jobs' states, and fetch each video as soon as there is one."""
        while not self._ended.is_set():
            await asyncio.sleep(1 / STATUS_RATE)
            live = self.seen.live()
            if live:
                await self._look_at(self.random.choice(live))

    async def _look_at(self, job_id: str) -> None:
        started = time.monotonic()
        try:
            answer = await self.client.get(f"/v1/jobs/{job_id}")
        except NoAnswer:
            return
        if answer.status != 200:
            if answer.status not in (429, 503):
                self.seen.refused.append(f"status of {job_id}: {answer.status} {answer.body[:200]!r}")
            return
        (self.seen.statuses if self.faults else self.seen.calm_statuses).append(time.monotonic() - started)
        state = answer.json()["status"]
        if state in ("succeeded", "failed", "canceled"):
            first = self.seen.final.setdefault(job_id, state)
            self.seen.flipped.update({job_id} if first != state else ())
        await self._fetch_video(job_id)

    async def _fetch_video(self, job_id: str) -> None:
        """Fetch a video. At any moment it is served whole or not at all."""
        try:
            answer = await self.client.get(f"/v1/jobs/{job_id}/video")
        except NoAnswer:
            return
        if answer.status == 200:
            job = self.stack.journal.read(job_id)
            if answer.body != synthetic_video(job.submitted.params):
                self.seen.partial.add(job_id)

    async def _cancel_some(self) -> None:
        while not self._ended.is_set():
            await asyncio.sleep(0.2)
            live = [job_id for job_id in self.seen.live() if job_id not in self.seen.canceled]
            if live and len(self.seen.canceled) < len(self.seen.accepted) // CANCEL_EVERY:
                # Running jobs are the hard case. When Redis is away, any job will do.
                try:
                    running = sorted(self.stack.running_jobs() & set(live))
                except RedisError:
                    running = []
                await self._cancel(self.random.choice(running or live))

    async def _cancel(self, job_id: str) -> None:
        started = time.monotonic()
        path = f"/v1/jobs/{job_id}/cancel"
        answer = await self._insist(path, lambda: self.client.request("POST", path), {200, 409})
        if answer is None or answer.status == 409:  # the job had ended already
            return
        self.seen.canceled.add(job_id)
        while not self._ended.is_set():
            try:
                if not self.stack.is_rendering(job_id):
                    break
            except RedisError:
                log.debug("Redis is away")
            await asyncio.sleep(0.02)
        times = self.seen.cancels if self.faults else self.seen.calm_cancels
        times.append(time.monotonic() - started)

    # What goes wrong

    async def _supervise(self) -> None:
        while not self._ended.is_set():
            self.stack.poll()
            await asyncio.sleep(0.1)

    async def _inject(self, kills: int) -> None:
        """Inject `kills` faults, evenly spread, one of them a FLUSHALL."""
        if not kills:
            return
        kinds = self.random.choices(list(FAULT_WEIGHTS), list(FAULT_WEIGHTS.values()), k=kills)
        kinds[kills // 2] = "flush"
        if self.options.outage_s:
            kinds[kills // 4] = "outage"
        began = time.monotonic()
        for place, kind in enumerate(kinds):
            await asyncio.sleep(
                max(0.0, began + (place + 1) * self.options.seconds / kills - time.monotonic())
            )
            while (fault := self._commit(kind)) is None:  # the victim is still down from the last fault
                await asyncio.sleep(0.1)
            log.info("fault: %s", fault)
            self.faults.append(fault)

    def _commit(self, kind: str) -> InjectedFault | None:
        workers = self.stack.worker_pids()
        match kind:
            case "flush":
                return self.stack.flush_redis()
            case "outage":
                return self.stack.freeze_redis(self.options.outage_s)
            case "api" | "reaper" | "redis":
                return self.stack.kill(kind)
            case _ if not workers:
                return None
            case "worker":
                return self.stack.kill_worker(self.random.choice(workers))
            case "freeze":
                return self.stack.freeze_worker(self.random.choice(workers))
            case _:
                return self.stack.kill_child(self.random.choice(workers))

    async def _drain(self) -> None:
        """Wait until every accepted job has ended, or until none has ended for a minute."""
        last_change, remaining = time.monotonic(), -1
        while time.monotonic() - last_change < 60:
            live = [job_id for job_id in self.seen.accepted.values() if not self._is_over(job_id)]
            if not live:
                return
            if len(live) != remaining:
                last_change, remaining = time.monotonic(), len(live)
            await asyncio.sleep(0.5)

    def _is_over(self, job_id: str) -> bool:
        try:
            return self.stack.journal.read(job_id).state.is_terminal
        except JobNotFound:
            return True

    async def _overload(self, report: Report) -> None:
        """Fill the queue, then send requests as fast as they are answered, and count the answers."""
        api = self.stack.supervisor.pid("api")
        assert api is not None
        before = resident_bytes(api)
        body = self._form.body(prompt="overload", num_inference_steps="40")
        answers: Counter[str] = Counter()

        async def hammer(until: Callable[[], bool]) -> None:
            while not until():
                try:
                    answer = await self.client.submit(body)
                except NoAnswer as error:
                    answers[str(error)] += 1
                else:
                    answers[str(answer.status)] += 1
                    if answer.status == 429 and "retry-after" not in answer.headers:
                        answers["429 without Retry-After"] += 1

        await asyncio.gather(*(hammer(lambda: answers["429"] > 0) for _ in range(4)))
        answers.clear()
        started = time.monotonic()
        ends = started + self.options.overload_s
        await asyncio.gather(*(hammer(lambda: time.monotonic() > ends) for _ in range(FLOOD_CLIENTS)))
        report.overload = dict(answers)
        report.overload_per_s = round(answers.total() / (time.monotonic() - started), 1)
        report.overload_api_growth_mb = round((resident_bytes(api) - before) / 2**20, 1)

    # What must hold

    async def _judge(self, report: Report) -> None:
        seen = self.seen
        report.jobs = len(seen.accepted)
        ids = set(seen.accepted.values())
        report.duplicated = len(seen.accepted) - len(ids)
        restarts: list[float] = []
        interruptions: Counter[str] = Counter()
        for job_id in ids:
            try:
                job = self.stack.journal.read(job_id)
            except JobNotFound:
                report.lost += 1
                continue
            entries = list(self.stack.journal.entries(job_id))
            self._judge_job(report, job, entries)
            interruptions.update(entry.reason for entry in entries if isinstance(entry, Interrupted))
            restarts += self._restart_times(entries, job_id)
            if job.video is not None:
                await self._fetch_until_served(job_id)
        if not self.options.overload_s:
            # A job that no client was told of was made by a second submit with the same key.
            report.duplicated += len(set(self.stack.store.list_names("jobs")) - ids)
        report.partial, report.flipped = len(seen.partial), len(seen.flipped)
        report.refused = len(seen.refused)
        for refusal in seen.refused[:10]:
            log.error("refused: %s", refusal)
        report.faults = dict(Counter(fault.kind for fault in self.faults))
        report.kills = sum(fault.kind.startswith("kill") for fault in self.faults)
        report.interruptions = dict(interruptions)
        report.restarts = len(restarts)
        report.restart_p50_s, report.restart_p99_s = (_rounded(percentile(restarts, q)) for q in (0.5, 0.99))
        calm = [1000 * seconds for seconds in seen.calm_submits]
        report.submit_p50_ms, report.submit_p99_ms = (_rounded(percentile(calm, q)) for q in (0.5, 0.99))
        report.submit_under_faults_p99_ms = _rounded(percentile([1000 * s for s in seen.submits], 0.99))
        report.status_p99_ms = _rounded(percentile([1000 * s for s in seen.calm_statuses], 0.99))
        report.status_under_faults_p99_ms = _rounded(percentile([1000 * s for s in seen.statuses], 0.99))
        report.cancel_p99_s = _rounded(percentile(seen.calm_cancels, 0.99))
        report.cancel_under_faults_p99_s = _rounded(percentile(seen.cancels, 0.99))

    def _judge_job(self, report: Report, job: Job, entries: list[JournalEntry]) -> None:
        ends = sum(isinstance(entry, Succeeded | Failed | Canceled) for entry in entries)
        report.stuck += ends == 0
        report.duplicated += ends > 1
        report.succeeded += job.video is not None
        report.failed += job.error is not None
        report.canceled += isinstance(entries[-1], Canceled)
        report.resumed_clips += sum(clip.attempt < job.attempt for clip in job.clips)
        if self.seen.final.get(job.id, job.state) != job.state:
            self.seen.flipped.add(job.id)
        if job.id in self.seen.canceled and not isinstance(entries[-1], Canceled):
            self.seen.flipped.add(job.id)
        if ends == 0 or job.error is not None:
            log.error("job %s: %s %s", job.id, job.state, job.error)

    def _restart_times(self, entries: list[JournalEntry], job_id: str) -> list[float]:
        """For each attempt that a fault ended: seconds from the fault to the start of the next attempt."""
        times = []
        worker, hurt_at = "", None
        for entry in entries:
            at = entry.at.timestamp()
            match entry:
                case Started():
                    if hurt_at is not None:
                        times.append(at - hurt_at)
                    worker, hurt_at = entry.worker, None
                case Interrupted():
                    hits = [
                        fault.at
                        for fault in self.faults
                        if fault.worker_pid is not None
                        and fault.worker_pid == pid_of(worker)
                        and fault.job_id == job_id
                        and fault.at <= at
                    ]
                    hurt_at = max(hits, default=None)
        return times

    async def _fetch_until_served(self, job_id: str) -> None:
        answer = await self._insist_at_end(f"/v1/jobs/{job_id}/video")
        job = self.stack.journal.read(job_id)
        if answer.status != 200 or answer.body != synthetic_video(job.submitted.params):
            self.seen.partial.add(job_id)

    async def _insist_at_end(self, path: str) -> Answer:
        deadline = time.monotonic() + 30
        while True:
            self.stack.poll()
            try:
                answer = await self.client.get(path)
            except NoAnswer:
                if time.monotonic() > deadline:
                    raise
            else:
                if answer.status not in (429, 503) or time.monotonic() > deadline:
                    return answer
            await asyncio.sleep(RETRY_S)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


async def _run(options: Options, folder: Path, settings: Settings) -> Report:
    # Long enough that faults mostly meet busy workers, short enough that all jobs fit in.
    steps = options.jobs * STEPS_PER_JOB
    busy = 0.8 * options.workers * options.seconds / steps if options.kills else 0.05
    fake = FakeSettings(seconds_per_step=min(1.0, busy), media=False)
    with live_stack(folder, options.workers, fake, settings) as stack:
        client = Client(stack.settings.port)
        try:
            return await Chaos(stack, options, client).run()
        finally:
            client.close()


def run_chaos(options: Options, folder: Path | None = None) -> Report:
    """Run it in `folder` (a temporary one by default). Main thread only.

    Lease times are those of production, so that restart times are, too.
    """
    # Kills that hit the same job again must not use up its attempts: another test covers that promise.
    settings = Settings(max_attempts=50, max_queued_jobs=max(1000, options.jobs), min_free_bytes=0)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_run(options, folder, settings))
    with tempfile.TemporaryDirectory(prefix="cointeract-chaos-") as temporary:
        return asyncio.run(_run(options, Path(temporary), settings))
