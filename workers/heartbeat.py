"""The supervisor's heartbeats: our lease on the worker and its attempt, RQ's on the worker and its ticket."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import cast

from redis.exceptions import RedisError
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE, Execution
from rq.worker import BaseWorker

from contract.attention import AttentionReport
from contract.memory import MemoryMode
from contract.settings import Settings
from contract.speed import Speed
from contract.worker import RunningJob, WorkerInfo
from jobs.queue import JobQueue
from jobs.redis_values import texts_of

log = logging.getLogger(__name__)

SHORTEST_INTERVAL_S = 0.1
"""Shortest time between two heartbeats, and so between two reports of progress."""


class Heartbeat(threading.Thread):
    """Beats every `heartbeat_s`, and soon after each `update`. It only notes that Redis is away."""

    def __init__(
        self, settings: Settings, queue: JobQueue, worker: str, checkpoint: str, device: str
    ) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.speed: Speed | None = None
        self.attention: AttentionReport | None = None
        self.memory_mode: MemoryMode | None = None
        self._settings = settings
        self._queue = queue
        self._info = WorkerInfo(name=worker, checkpoint=checkpoint, device=device)
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._redis_is_away = False

    def update(self, ready: bool, running: RunningJob | None, problem: str | None) -> None:
        """Set what the next beats tell."""
        said: dict[str, object] = {"ready": ready, "running": running, "problem": problem}
        said |= {"speed": self.speed, "attention": self.attention, "memory_mode": self.memory_mode}
        self._info = self._info.model_copy(update=said)
        self._changed.set()

    def stop(self) -> None:
        """End, and take the worker off the list of live ones."""
        self._stopping.set()
        self._changed.set()
        self.join()
        with suppress(RedisError):
            self._queue.retire(self._info.name)

    def run(self) -> None:
        while not self._stopping.is_set():
            self._changed.clear()
            started = time.monotonic()
            try:
                self._beat()
            except Exception:  # whatever it is, a worker that lives must go on saying so
                log.exception("a heartbeat failed")
            self._changed.wait(max(0.0, self._settings.heartbeat_s - (time.monotonic() - started)))
            self._stopping.wait(SHORTEST_INTERVAL_S)

    def _beat(self) -> None:
        try:
            self._queue.beat(self._info)
            self._beat_for_rq()
        except RedisError as error:
            if not self._redis_is_away:
                log.warning("Redis is away (%s); rendering goes on", error)
            self._redis_is_away = True
        else:
            if self._redis_is_away:
                log.info("Redis is back")
            self._redis_is_away = False

    def _beat_for_rq(self) -> None:
        """Keep RQ's records of the worker and its ticket from expiring, as RQ's forking worker does."""
        redis, name, ttl = self._queue.redis, self._info.name, self._settings.rq_lease_s
        executions_key = WORKER_EXECUTIONS_KEY_TEMPLATE.format(name)
        keys = texts_of(cast(set[bytes], redis.smembers(executions_key)))
        ours = [key for key in keys if key.count(":") == 1]  # a ticket and its execution
        executions = [Execution.from_composite_key(key, connection=redis) for key in ours]
        registry = self._queue.tickets(self._info.checkpoint).started_job_registry
        with redis.pipeline(transaction=False) as pipeline:
            pipeline.expire(BaseWorker.redis_worker_namespace_prefix + name, ttl + 60)
            pipeline.expire(executions_key, ttl + 60)
            for execution in executions:
                execution.heartbeat(registry, ttl, pipeline)
            pipeline.execute()
