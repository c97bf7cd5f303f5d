"""`cointeract chaos`: submits jobs over HTTP, kills parts of a live stack, and counts broken promises.

The model is fake and fast. Everything else runs as in production: API, journals, Redis, workers and reaper,
under the same supervisor. Each submit carries an Idempotency-Key and is repeated until it is answered, as a
careful client does. Every promise is then checked against the journals and the served bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from redis.exceptions import RedisError

from chaos.client import Answer, Client, NoAnswer, SubmitForm
from chaos.disk import Disk, disk_in
from chaos.observed import Observed
from chaos.receivers import Receivers, make_certificate, network_of_our_own, receiving
from chaos.report import Report
from chaos.stack import InjectedFault, LiveStack, live_stack, resident_bytes
from chaos.storage import RemoteStorage
from chaos.verdict import RETRY_S, Judge
from contract.settings import Settings
from jobs.journal import JobNotFound
from workers.engines.fake import FakeSettings, synthetic_video

log = logging.getLogger(__name__)

FAULT_WEIGHTS = {"child": 7, "worker": 5, "api": 3, "reaper": 2, "redis": 2, "freeze": 1, "supervisor": 1}
CALM_SHARE = 0.5
"""Share of the jobs that are submitted at `Options.rate` before the first fault, to measure latencies."""
SUBMIT_RATE = 50.0
REMOTE_SUBMIT_RATE = 4.0
"""With a storage that handles one request at a time, on the same cores."""
STORAGE_FAILS_S = 4.0
STATUS_RATE = 20.0
CANCEL_EVERY = 20
"""One job in this many is canceled."""
STEPS_PER_JOB = 8
"""Two clips of four steps."""
FLOOD_CLIENTS = 64
WEBHOOK_EVERY = 5
"""One job in this many names a webhook. Every other of these webhooks is a black hole."""


@dataclass(frozen=True)
class Options:
    jobs: int = 1000
    kills: int = 100
    seconds: float = 300.0
    """Length of the part with faults."""
    workers: int = 4
    outage_s: float = 0.0
    """Seconds in the middle of that part in which Redis answers nobody."""
    overload_s: float = 0.0
    """Seconds of flooding the API afterwards."""
    apis: int = 1
    """The number of API processes that share the store. Clients ask them in turn."""
    power_cuts: int = 0
    """The number of power cuts, on top of the kills. Data that had not reached the disk is lost."""
    webhooks: bool = False
    """Whether some jobs name webhooks, half of which are black holes."""
    rate: float | None = None
    """Jobs submitted per second before the first fault. None: as many as suits the storage."""
    seed: int = 0
    storage: RemoteStorage | None = None
    """Where jobs lie if the parts share no disk."""

    @property
    def submit_rate(self) -> float:
        return self.rate or (SUBMIT_RATE if self.storage is None else REMOTE_SUBMIT_RATE)


class Chaos:
    """One run against one stack."""

    def __init__(
        self, stack: LiveStack, options: Options, client: Client, receivers: Receivers | None = None
    ) -> None:
        self.stack = stack
        self.options = options
        self.client = client
        self.receivers = receivers
        self.random = random.Random(options.seed)
        self.seen = Observed()
        self.faults: list[InjectedFault] = []
        self._form = SubmitForm()
        self._ended = asyncio.Event()

    async def run(self) -> Report:
        started = time.monotonic()
        report = Report(
            seed=self.options.seed,
            workers=self.options.workers,
            apis=self.options.apis,
            rate=self.options.submit_rate,
            max_attempts=self.stack.settings.max_attempts,
        )
        calm = int(self.options.jobs * CALM_SHARE) if self.options.kills else self.options.jobs
        background = [
            asyncio.create_task(work()) for work in (self._supervise, self._watch, self._cancel_some)
        ]
        try:
            await self._submit_all(range(calm), self.options.submit_rate, self.seen.calm_submits)
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
        judge = Judge(
            self.stack,
            self.client,
            self.seen,
            self.faults,
            self.receivers,
            knows_all_jobs=not self.options.overload_s,
        )
        await judge.judge(report)
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
        url = self._webhook_of(number)
        texts = {"prompt": f"a person speaks {number}", "seed": str(number)}
        body = self._form.body(**texts, **({} if url is None else {"webhook_url": url}))

        async def post() -> Answer:
            started = time.monotonic()
            answer = await self.client.submit(body, key)
            latencies.append(time.monotonic() - started)
            return answer

        answer = await self._insist("submit", post, {202, 200})
        if answer is not None:
            job_id = self.seen.accepted[key] = answer.json()["id"]
            if url is not None:
                self.seen.webhooks[job_id] = url

    def _webhook_of(self, number: int) -> str | None:
        if self.receivers is None or number % WEBHOOK_EVERY:
            return None
        is_hole = number // WEBHOOK_EVERY % 2
        return self.receivers.hole_url if is_hole else self.receivers.good_url

    async def _insist(
        self, path: str, request: Callable[[], Awaitable[Answer]], wanted: set[int]
    ) -> Answer | None:
        """Repeat a request while the API is dead, starting or full. Note other refusals and return None."""
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
        """Ask for the states of random jobs, and fetch each video as soon as there is one."""
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
        """Fetch a video and note whether it was served whole, as it must be at any moment."""
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
        """Inject `kills` faults and the power cuts, evenly spread, one of them a FLUSHALL."""
        if not kills:
            return
        weights = dict(FAULT_WEIGHTS)
        if self.stack.fail_storage is not None:
            weights["storage"] = 3
        kinds = self.random.choices(list(weights), list(weights.values()), k=kills)
        kinds[kills // 2] = "flush"
        if self.options.outage_s:
            kinds[kills // 4] = "outage"
        for cut in range(self.options.power_cuts):
            kinds.insert((2 * cut + 1) * len(kinds) // (2 * self.options.power_cuts), "power")
        began = time.monotonic()
        for place, kind in enumerate(kinds):
            due = began + (place + 1) * self.options.seconds / len(kinds)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
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
            case "storage":
                return self.stack.break_storage(STORAGE_FAILS_S)
            case "power":
                return self.stack.cut_power()
            case "api":
                return self.stack.kill(self.random.choice(self.stack.api_names))
            case "reaper" | "redis":
                return self.stack.kill(kind)
            case _ if not workers:
                return None
            case "worker":
                return self.stack.kill_worker(self.random.choice(workers))
            case "freeze":
                return self.stack.freeze_worker(self.random.choice(workers))
            case "supervisor":
                return self.stack.freeze_supervisor(self.random.choice(workers))
            case _:
                return self.stack.kill_child(self.random.choice(workers))

    async def _drain(self) -> None:
        """Wait until all accepted jobs have ended and were posted, or until a minute brings no progress."""
        last_change, remaining = time.monotonic(), -1
        while time.monotonic() - last_change < 60:
            live = [job_id for job_id in self.seen.accepted.values() if not self._is_over(job_id)]
            live += self._untold()
            if not live:
                return
            if len(live) != remaining:
                last_change, remaining = time.monotonic(), len(live)
            await asyncio.sleep(0.5)

    def _untold(self) -> list[str]:
        """Jobs whose receiver answers but has not been told their end."""
        if self.receivers is None:
            return []
        good, ends = self.receivers.good_url, self.receivers.ends
        return [job_id for job_id, url in self.seen.webhooks.items() if url == good and job_id not in ends]

    def _is_over(self, job_id: str) -> bool:
        try:
            return self.stack.journal.read(job_id).state.is_terminal
        except JobNotFound:
            return True

    async def _overload(self, report: Report) -> None:
        """Fill the queue, then send requests as fast as they are answered, and count the answers."""
        api = self.stack.supervisor.pid(self.stack.api_names[0])
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


async def _run(options: Options, folder: Path, disk: Disk | None) -> Report:
    # Long enough that faults mostly meet busy workers, short enough that all jobs fit in.
    steps = options.jobs * STEPS_PER_JOB
    busy = 0.8 * options.workers * options.seconds / steps if options.kills else 0.05
    fake = FakeSettings(seconds_per_step=min(1.0, busy), media=False)
    settings = Settings(max_queued_jobs=max(1000, options.jobs), min_free_bytes=0)
    async with AsyncExitStack() as resources:
        receivers: Receivers | None = None
        environment: dict[str, str] = {}
        if options.webhooks:
            certificate, key = make_certificate(folder)
            receivers = await resources.enter_async_context(receiving(certificate, key))
            environment["SSL_CERT_FILE"] = str(certificate)
        stack = resources.enter_context(
            live_stack(
                folder,
                options.workers,
                fake,
                settings,
                apis=options.apis,
                disk=disk,
                storage=options.storage,
                more_environment=environment,
            )
        )
        client = Client(*stack.ports)
        resources.callback(client.close)
        return await Chaos(stack, options, client, receivers).run()


def run_chaos(options: Options, folder: Path | None = None) -> Report:
    """Run chaos in `folder` (default: a temporary one). Must be called in the main thread.

    Lease times and the number of attempts are those of production.

    Raises NoDisk or NoNetwork if this machine does not allow what `options` ask for.
    """
    with ExitStack() as resources:
        if folder is None:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="cointeract-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        if options.webhooks:
            resources.enter_context(network_of_our_own())
        disk = resources.enter_context(disk_in(folder / "loop")) if options.power_cuts else None
        return asyncio.run(_run(options, folder, disk))
