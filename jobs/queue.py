"""The queue: hints in Redis about which jobs wait and who works on them. Losing all of it loses no job.

RQ carries *tickets*. A ticket says "render the next job of this checkpoint". The worker that gets one picks a
job by `jobs.scheduling` and claims it in the journal. So the next job is chosen when a worker is free, not
when a job is submitted, and a ticket that arrives twice, or whose job is gone, does no harm. The reaper makes
sure that there are at least as many tickets as waiting jobs.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis import exceptions
from rq import Queue
from rq.serializers import JSONSerializer

from contract.job import utcnow
from contract.settings import Settings
from contract.state import Job
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.queue_plan import PLANNED_FROM, QueuePlan
from jobs.redis_connection import connect
from jobs.redis_values import (
    drop_wrong_types,
    hint_of,
    record_of,
    served_of,
    speed_of,
    texts_of,
    waiting_of,
)
from jobs.scheduling import PRICE, QueueSnapshot, WaitingJob, may_start, start_order
from jobs.tickets import RENDER_NEXT, Ticket

if TYPE_CHECKING:
    from redis.client import Pipeline

SERVED_WINDOW_S = 600.0
"""How long served work counts against its owner."""

_SNAPSHOT_AGE_S = 0.3
_PREFIX = "cointeract:"
_WORKERS = _PREFIX + "workers"
_CHECKPOINTS = _PREFIX + "checkpoints"
_TROUBLED = _PREFIX + "troubled"
_DRAINING = _PREFIX + "draining"
_EPOCH = _PREFIX + "epoch"


def queue_name(checkpoint: str) -> str:
    """The name of the RQ queue with the tickets of a checkpoint."""
    return f"render.{checkpoint}"


def _waiting_key(checkpoint: str) -> str:
    return f"{_PREFIX}waiting:{checkpoint}"


def _plan_key(checkpoint: str) -> str:
    return f"{_PREFIX}plan:{checkpoint}"


def _served_key(checkpoint: str) -> str:
    return f"{_PREFIX}served:{checkpoint}"


def _worker_key(name: str) -> str:
    return f"{_PREFIX}worker:{name}"


def _progress_key(job_id: str) -> str:
    return f"{_PREFIX}progress:{job_id}"


def _alive_key(process: str) -> str:
    return f"{_PREFIX}alive:{process}"


def _claim_key(name: str) -> str:
    return f"{_PREFIX}claim:{name}"


def _troubles_key(origin: str) -> str:
    return f"{_PREFIX}troubles:{origin}"


def _speed_key(checkpoint: str) -> str:
    return f"{_PREFIX}speed:{checkpoint}"


class JobQueue:
    """The queue. Every method may raise redis.exceptions.RedisError. Threads may share one."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self.settings = settings
        self.redis = connect(redis_url)
        self._tickets: dict[str, Queue] = {}
        self._snapshots: dict[str, tuple[float, QueueSnapshot]] = {}
        self._snapshot_lock = threading.Lock()
        self._failed: tuple[float, exceptions.RedisError | None] = (-math.inf, None)

    # What the server calls

    def announce(self, job: Job) -> None:
        """Add a queued job to the waiting set, and issue one ticket."""
        with self.redis.pipeline(transaction=False) as pipeline:
            self._add_waiting([job], pipeline)
            self._add_tickets(job.submitted.checkpoint, 1, pipeline)
            pipeline.execute()

    def withdraw(self, job_id: str, checkpoint: str) -> None:
        """Take a job out of the waiting set. Its ticket stays and will have no effect."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hdel(_waiting_key(checkpoint), job_id)
            pipeline.zrem(_plan_key(checkpoint), job_id)
            pipeline.execute()

    def snapshot(self, checkpoint: str, *, max_age_s: float = _SNAPSHOT_AGE_S) -> QueueSnapshot:
        """The waiting jobs in the order they will start, and the live workers, at most `max_age_s` old.

        Of a long queue that is planned, only the first jobs are read: its cost does not grow with the queue.
        """
        asked = time.monotonic()
        taken, snapshot = self._snapshots.get(checkpoint, (-math.inf, None))
        # While another thread takes a new one, a snapshot that is a little older will do.
        patience = 4 if self._snapshot_lock.locked() else 1
        if snapshot is not None and asked - taken <= patience * max_age_s:
            return snapshot
        with self._snapshot_lock:
            taken, snapshot = self._snapshots.get(checkpoint, (-math.inf, None))
            if snapshot is not None and time.monotonic() - taken <= max_age_s:
                return snapshot
            # Threads that waited for the lock while Redis did not answer must not each wait for Redis, too.
            failed, failure = self._failed
            if failure is not None and asked < failed:
                raise failure
            try:
                snapshot = self._take_snapshot(checkpoint)
            except exceptions.RedisError as error:
                self._failed = (time.monotonic(), error)
                raise
            self._snapshots[checkpoint] = (time.monotonic(), snapshot)
            return snapshot

    def startable(self, checkpoint: str) -> Iterator[WaitingJob]:
        """The jobs that may start now, the next one first. Of a long queue only the first are read, and other
        workers only if an owner has a limit.
        """
        planned = self._planned(checkpoint)
        running: list[RunningJob] | None = None
        if planned is None:
            snapshot = self.snapshot(checkpoint, max_age_s=0)
            planned, running = (list(snapshot.waiting), snapshot.count), snapshot.running
        for job in planned[0]:
            if running is None and job.max_running is not None:
                running = [each.running for each in self._workers_of(checkpoint) if each.running is not None]
            if may_start(job, running or ()):
                yield job

    def place(self, job_id: str, checkpoint: str) -> int | None:
        """The place of a job in a long queue, 1 for the first; None if it does not wait."""
        if not self.redis.hexists(_waiting_key(checkpoint), job_id):
            return None
        planned = self._plan(checkpoint).place(job_id)
        return planned or self.redis.hlen(_waiting_key(checkpoint))

    def progress(self, job_id: str) -> LiveProgress | None:
        return hint_of(LiveProgress, cast(bytes | None, self.redis.get(_progress_key(job_id))))

    def workers(self) -> list[WorkerInfo]:
        """Workers with a live lease."""
        names = texts_of(cast(set[bytes], self.redis.smembers(_WORKERS)))
        if not names:
            return []
        answers = cast(list[bytes | None], self.redis.mget([_worker_key(name) for name in names]))
        dead = [name for name, answer in zip(names, answers, strict=True) if answer is None]
        if dead:
            self.redis.srem(_WORKERS, *dead)  # a live one adds itself again with its next heartbeat
        found = [hint_of(WorkerInfo, answer) for answer in answers]
        return [info for info in found if info is not None]

    def ping(self) -> None:
        self.redis.ping()

    # What workers and the reaper call

    def checkpoints(self) -> list[str]:
        """The checkpoints for which a job was ever announced."""
        return texts_of(cast(set[bytes], self.redis.smembers(_CHECKPOINTS)))

    def tickets(self, checkpoint: str) -> Queue:
        """The RQ queue of a checkpoint's tickets."""
        if checkpoint not in self._tickets:
            self._tickets[checkpoint] = Queue(
                queue_name(checkpoint), connection=self.redis, job_class=Ticket, serializer=JSONSerializer
            )
        return self._tickets[checkpoint]

    def waiting_ids(self, checkpoint: str) -> set[str]:
        return set(texts_of(cast(list[bytes], self.redis.hkeys(_waiting_key(checkpoint)))))

    def add_waiting(self, jobs: list[Job]) -> None:
        """Add queued jobs to the waiting set without issuing tickets."""
        with self.redis.pipeline(transaction=False) as pipeline:
            self._add_waiting(jobs, pipeline)
            pipeline.execute()

    def top_up_tickets(self, checkpoint: str) -> int:
        """Issue tickets until there is one for each waiting job. Returns how many were missing."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hlen(_waiting_key(checkpoint))
            pipeline.llen(self.tickets(checkpoint).key)
            waiting, issued = cast(list[int], pipeline.execute())
        missing = max(0, waiting - issued)
        with self.redis.pipeline(transaction=False) as pipeline:
            self._add_tickets(checkpoint, missing, pipeline)
            pipeline.execute()
        return missing

    def plan(self, checkpoint: str) -> bool:
        """Work out in which order a long queue starts, for all who look at it. False if it is short."""
        plan = self._plan(checkpoint)
        if self.redis.hlen(_waiting_key(checkpoint)) <= PLANNED_FROM:
            plan.forget()
            return False
        order = self._whole_snapshot(checkpoint, self._workers_of(checkpoint)).waiting
        plan.write([job.id for job in order])
        return True

    def _plan(self, checkpoint: str) -> QueuePlan:
        return QueuePlan(self.redis, _plan_key(checkpoint))

    def beat(self, info: WorkerInfo) -> None:
        """Renew the lease of a worker, and with it that of the attempt it names."""
        ttl_ms = int(self.settings.lease_ttl_s * 1000)
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.sadd(_WORKERS, info.name)
            pipeline.set(_worker_key(info.name), info.model_dump_json(), px=ttl_ms)
            if info.running is not None:
                progress = info.running.progress.model_dump_json()
                pipeline.set(_progress_key(info.running.job_id), progress, px=ttl_ms)
            if info.speed is not None:
                pipeline.set(_speed_key(info.checkpoint), info.speed.model_dump_json())
            pipeline.execute()

    def drain(self, worker: str, draining: bool) -> None:
        """Let a worker take no new job, or jobs again."""
        if draining:
            self.redis.sadd(_DRAINING, worker)
        else:
            self.redis.srem(_DRAINING, worker)

    def draining(self) -> set[str]:
        """Names of workers that are to take no new job."""
        return set(texts_of(cast(set[bytes], self.redis.smembers(_DRAINING))))

    def may_work(self, worker: str) -> bool:
        """Whether a worker may take a job: its lease runs, and it is not being drained."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.exists(_worker_key(worker))
            pipeline.sismember(_DRAINING, worker)
            has_lease, drained = pipeline.execute()
        return bool(has_lease) and not drained

    def say_alive(self, process: str, seconds: float) -> None:
        """Note that a process other than a worker is alive. The note holds for so many seconds."""
        self.redis.set(_alive_key(process), "", px=int(1000 * seconds))

    def is_alive(self, process: str) -> bool:
        return bool(self.redis.exists(_alive_key(process)))

    def claim(self, name: str, holder: str, seconds: float) -> bool:
        """Whether `holder` alone may do what `name` says, for so many seconds. It may renew its claim."""
        key, lasts = _claim_key(name), int(1000 * seconds)
        if self.redis.set(key, holder, px=lasts, nx=True):
            return True
        if self.redis.get(key) != holder.encode():
            return False
        return bool(self.redis.pexpire(key, lasts))

    def release(self, name: str, holder: str) -> None:
        """Give back a claim."""
        if self.redis.get(_claim_key(name)) == holder.encode():
            self.redis.delete(_claim_key(name))

    def tell_troubles(self, origin: str, troubles: Mapping[str, str], seconds: float) -> None:
        """Note why parts do not work that cannot say so themselves, by part. The note holds for so long."""
        with self.redis.pipeline(transaction=False) as pipeline:
            if troubles:
                pipeline.sadd(_TROUBLED, origin)
                pipeline.set(_troubles_key(origin), json.dumps(dict(troubles)), px=int(1000 * seconds))
            else:
                pipeline.srem(_TROUBLED, origin)
                pipeline.delete(_troubles_key(origin))
            pipeline.execute()

    def troubles(self) -> list[str]:
        """The noted sentence of each part that does not work."""
        origins = texts_of(cast(set[bytes], self.redis.smembers(_TROUBLED)))
        found: list[str] = []
        for origin in origins:
            told = cast(bytes | None, self.redis.get(_troubles_key(origin)))
            if told is None:
                self.redis.srem(_TROUBLED, origin)
                continue
            with suppress(ValueError, AttributeError):  # written by another version of this program
                found += [str(words) for words in json.loads(told).values()]
        return found

    def retire(self, name: str) -> None:
        """Forget a worker that stops."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.srem(_WORKERS, name)
            pipeline.srem(_DRAINING, name)
            pipeline.delete(_worker_key(name))
            pipeline.execute()

    def bill(self, job: Job, fraction: float) -> None:
        """Count a part of a job against its owner's fair share for a while."""
        request = job.submitted
        amount = request.cost * PRICE[request.priority] * fraction
        record = json.dumps([request.owner, amount, f"{job.id}.{job.attempt}"])
        now = self._now()
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.zadd(_served_key(request.checkpoint), {record: now})
            pipeline.zremrangebyscore(_served_key(request.checkpoint), 0, now - SERVED_WINDOW_S)
            pipeline.execute()

    def epoch(self) -> str:
        """A mark that changes when Redis has forgotten something: after a flush, a restart without its file,
        or a move to another server.
        """
        self.redis.set(_EPOCH, secrets.token_hex(8), nx=True)
        info = cast(dict[str, str], self.redis.info("server"))
        return f"{cast(bytes | None, self.redis.get(_EPOCH))!r}:{info['run_id']}"

    def drop_wrong_types(self, checkpoints: Iterable[str]) -> int:
        """Delete keys that somebody has made into something else than we or RQ need; returns their number."""
        types = {_WORKERS: "set", _CHECKPOINTS: "set", _EPOCH: "string", _TROUBLED: "set", _DRAINING: "set"}
        types |= {"rq:queues": "set", "rq:workers": "set"}
        for checkpoint in checkpoints:
            types |= {_waiting_key(checkpoint): "hash", _served_key(checkpoint): "zset"}
            types |= {_speed_key(checkpoint): "string", _plan_key(checkpoint): "zset"}
            tickets = self.tickets(checkpoint)
            types |= {tickets.key: "list", tickets.intermediate_queue.key: "list"}
            types |= {f"rq:workers:{tickets.name}": "set"}
            registries = (
                tickets.started_job_registry,
                tickets.finished_job_registry,
                tickets.failed_job_registry,
                tickets.deferred_job_registry,
                tickets.scheduled_job_registry,
                tickets.canceled_job_registry,
            )
            types |= dict.fromkeys((registry.key for registry in registries), "zset")
        return drop_wrong_types(self.redis, types)

    def _now(self) -> float:
        """Unix time by the clock of Redis, which is the same for all who bill."""
        seconds, microseconds = self.redis.time()
        return seconds + microseconds / 1e6

    def _add_waiting(self, jobs: list[Job], pipeline: Pipeline) -> None:
        for job in jobs:
            pipeline.sadd(_CHECKPOINTS, job.submitted.checkpoint)
            record = record_of(WaitingJob.of(job))
            pipeline.hset(_waiting_key(job.submitted.checkpoint), job.id, record)
            if job.attempt:  # it was interrupted, and goes on before all others
                pipeline.zadd(_plan_key(job.submitted.checkpoint), {job.id: -1})

    def _add_tickets(self, checkpoint: str, count: int, pipeline: Pipeline) -> None:
        # Timeout -1: the stall watchdog, not RQ, decides how long a render may take.
        ticket = Queue.prepare_data(RENDER_NEXT, args=(checkpoint,), timeout=-1, result_ttl=0, failure_ttl=60)
        self.tickets(checkpoint).enqueue_many([ticket] * count, pipeline=pipeline)

    def _take_snapshot(self, checkpoint: str) -> QueueSnapshot:
        workers = self._workers_of(checkpoint)
        planned = self._planned(checkpoint)
        if planned is None:
            return self._whole_snapshot(checkpoint, workers)
        waiting, total = planned
        speed = speed_of(cast(bytes | None, self.redis.get(_speed_key(checkpoint))))
        return QueueSnapshot(utcnow(), waiting, workers, speed, total)

    def _workers_of(self, checkpoint: str) -> list[WorkerInfo]:
        return [worker for worker in self.workers() if worker.checkpoint == checkpoint]

    def _planned(self, checkpoint: str) -> tuple[list[WaitingJob], int] | None:
        """The first jobs of a long queue that is planned, and how many wait; None for another queue."""
        plan = self._plan(checkpoint)
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hlen(_waiting_key(checkpoint))
            plan.first(pipeline)
            total, first = pipeline.execute()
        if total <= PLANNED_FROM or not first:
            return None
        records = cast(list[bytes | None], self.redis.hmget(_waiting_key(checkpoint), first))
        plan.drop([job_id for job_id, record in zip(first, records, strict=True) if record is None])
        found = {name: record for name, record in zip(first, records, strict=True) if record is not None}
        waiting = self._readable(checkpoint, found)
        return (waiting, total) if waiting else None

    def _whole_snapshot(self, checkpoint: str, workers: list[WorkerInfo]) -> QueueSnapshot:
        now = self._now()
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(_waiting_key(checkpoint))
            pipeline.zrange(_served_key(checkpoint), 0, -1, withscores=True)
            pipeline.get(_speed_key(checkpoint))
            records, bills, speed = pipeline.execute()
        recent = [record for record, at in bills if at > now - SERVED_WINDOW_S]
        running = [worker.running for worker in workers if worker.running is not None]
        return QueueSnapshot(
            taken_at=utcnow(),
            waiting=start_order(self._readable(checkpoint, records), running, served_of(recent)),
            workers=workers,
            speed=speed_of(speed),
        )

    def _readable(self, checkpoint: str, records: dict[bytes, bytes]) -> list[WaitingJob]:
        """The waiting jobs of records that make sense. The others are dropped; the reaper makes them anew."""
        found = {job_id: waiting_of(job_id, record) for job_id, record in records.items()}
        if senseless := [job_id for job_id, waiting in found.items() if waiting is None]:
            self.redis.hdel(_waiting_key(checkpoint), *senseless)
        return [waiting for waiting in found.values() if waiting is not None]
