"""Collects what keeps parts of the stack from working while `cointeract up` runs, and tells the API.

A worker tells Redis itself why it cannot work. For a part that dies before it can tell anything, its parent
does, so that /readyz and /metrics know, too.
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
"""How long the API believes in a trouble that is not reported again."""


class Troubles(threading.Thread):
    """Talks to Redis in a thread of its own, because Redis may be slow to answer."""

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
        """Note the process id of each part, and why some keep dying."""
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
                continue  # the last state still holds; the stack restarts Redis if needed

    def end(self) -> None:
        self._ended.set()

    def _ask(self) -> None:
        workers = {pid_of(worker.name): worker for worker in self._queue.workers()}
        ours = {part: workers[pid] for part, pid in self._pids.items() if pid in workers}
        self._ready = frozenset(part for part, worker in ours.items() if worker.ready and not worker.problem)
        self._of_workers = {part: worker.problem for part, worker in ours.items() if worker.problem}
