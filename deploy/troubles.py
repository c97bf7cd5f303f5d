"""What keeps parts of the stack from working: collected while `cointeract up` runs, and passed on to the API.

A worker tells Redis itself why it cannot work. A part that dies before it can tell anything is told of by its
parent, so that /readyz and /metrics know of it, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from redis.exceptions import RedisError

from jobs.identity import pid_of, process_name
from jobs.queue import JobQueue

ASK_EVERY_S = 0.5
TROUBLES_KEPT_S = 5.0
"""How long the API believes a trouble that is not told of again."""


class Troubles(threading.Thread):
    """Asks Redis and tells it in a thread of its own, because Redis may take its time to answer."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(daemon=True, name="troubles")
        self._queue = queue
        self._origin = process_name("up")
        self._pids: Mapping[str, int | None] = {}
        self._dying: Mapping[str, str] = {}
        self._of_workers: Mapping[str, str] = {}
        self._ready: frozenset[str] = frozenset()
        self._ended = threading.Event()

    def note(self, pids: Mapping[str, int | None], dying: Mapping[str, str]) -> None:
        """The process id of each part, and why those that keep dying do."""
        self._pids, self._dying = pids, dying

    def known(self) -> dict[str, str]:
        """A sentence for each part that does not work."""
        return {**self._of_workers, **self._dying}

    def ready(self) -> frozenset[str]:
        """Workers that have their model loaded."""
        return self._ready

    def run(self) -> None:
        told_at = 0.0
        told: Mapping[str, str] = {}
        while not self._ended.wait(ASK_EVERY_S):
            try:
                self._ask()
                if self._dying != told or (told and time.monotonic() - told_at > TROUBLES_KEPT_S / 3):
                    told, told_at = dict(self._dying), time.monotonic()
                    self._queue.tell_troubles(self._origin, told, TROUBLES_KEPT_S)
            except (RedisError, OSError):
                continue  # what was known last still holds; the stack restarts Redis if need be

    def end(self) -> None:
        self._ended.set()

    def _ask(self) -> None:
        workers = {pid_of(worker.name): worker for worker in self._queue.workers()}
        ours = {part: workers[pid] for part, pid in self._pids.items() if pid in workers}
        self._ready = frozenset(part for part, worker in ours.items() if worker.ready and not worker.problem)
        self._of_workers = {part: worker.problem for part, worker in ours.items() if worker.problem}
