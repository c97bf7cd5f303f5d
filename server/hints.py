"""The queue as the server sees it: hints that may be missing.

When Redis is down, the server answers without them, and fast.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final, TypeVar

from redis.exceptions import RedisError

from contract.state import Job
from contract.worker import LiveProgress, WorkerInfo
from jobs.queue import JobQueue
from jobs.scheduling import QueueSnapshot

log = logging.getLogger(__name__)
Value = TypeVar("Value")
PAUSE_S: Final = 1.0
"""How long Redis is left alone after a failure. In an outage, not every request should wait for a timeout."""


class Hints:
    """A `JobQueue` that raises nothing. Threads may share it."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._down_until = 0.0
        self._holder = secrets.token_hex(8)

    def _ask(self, question: Callable[[], Value], otherwise: Value) -> Value:
        if time.monotonic() < self._down_until:
            return otherwise
        try:
            return question()
        except (RedisError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_S
            log.warning("Redis does not answer: %s", error)
            return otherwise

    def announce(self, job: Job) -> None:
        """Announce a job to the workers. If that fails, the reaper finds the job in storage."""
        self._ask(lambda: self._queue.announce(job), None)

    def withdraw(self, job: Job) -> None:
        """Take a job off the queue. If that fails, the worker that picks the job finds that it is over."""
        self._ask(lambda: self._queue.withdraw(job.id, job.submitted.checkpoint), None)

    def snapshot(self, checkpoint: str) -> QueueSnapshot | None:
        return self._ask(lambda: self._queue.snapshot(checkpoint), None)

    def place(self, job_id: str, checkpoint: str) -> int | None:
        """The place of a job in a queue of which a snapshot has not all."""
        return self._ask(lambda: self._queue.place(job_id, checkpoint), None)

    def progress(self, job_id: str) -> LiveProgress | None:
        return self._ask(lambda: self._queue.progress(job_id), None)

    def claim(self, name: str, seconds: float) -> bool:
        """Whether this process may do what `name` says, for so many seconds. It may renew its claim.

        True if Redis is away: doing it twice is better than never.
        """
        return self._ask(lambda: self._queue.claim(name, self._holder, seconds), True)

    def release(self, name: str) -> None:
        """Give back what was claimed."""
        self._ask(lambda: self._queue.release(name, self._holder), None)

    def workers(self) -> list[WorkerInfo] | None:
        """The live workers; None if that is not known."""
        return self._ask(self._queue.workers, None)

    def draining(self) -> set[str]:
        """Names of workers that take no new job."""
        nobody: set[str] = set()
        return self._ask(self._queue.draining, nobody)

    def drain(self, worker: str, draining: bool) -> None:
        """Let a worker take no new job, or jobs again."""
        self._ask(lambda: self._queue.drain(worker, draining), None)

    def problems(self) -> list[str]:
        """A sentence for each worker that cannot work, and each part of a stack that keeps dying."""
        found = [worker.problem for worker in self.workers() or () if worker.problem is not None]
        unknown: list[str] = []
        return found + self._ask(self._queue.troubles, unknown)
