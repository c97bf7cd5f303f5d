"""Jobs that were listed before, kept in memory with their JSON: lists are asked for again and again, and
little of them changes in between.

The store stays the truth: the index has just looked for new journal entries, and metadata and priority, which
are no entries, have a newer time in the store when they change.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from contract.state import Job
from jobs.journal import Journal

MOST: Final = 1000
"""Jobs that are remembered. Those that were asked for longest ago go first."""
SETTLED_S: Final = 120.0
"""A change younger than this is read each time: a second one could bear the same time. Clocks may differ by
half of it (`jobs.clock`).
"""


@dataclass
class _Known:
    job: Job
    changed_at: float | None
    text: bytes = b""
    text_of: object = None
    """What `text` was made of, beside the job."""


class RememberedJobs:
    """Reads jobs as the journal does, faster. Threads may share it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, job_id: str, sequence: int) -> Job:
        """A job that is stored and whose newest journal entry has the number `sequence`, or a later one.

        Neither is looked up: ask for ids that the index has just listed. Raises the errors of `Journal.read`.
        """
        changed_at = self._journal.changed_at(job_id)
        with self._lock:
            known = self._known.get(job_id)
            if known is not None:
                self._known.move_to_end(job_id)
        if known is not None and known.changed_at == changed_at:
            if known.job.sequence >= sequence:
                return known.job
            job = self._journal.read(job_id, known.job)
        else:
            job = self._journal.read(job_id)
        if changed_at is None or time.time() - changed_at > SETTLED_S:
            with self._lock:
                self._known[job_id] = _Known(job, changed_at)
                while len(self._known) > MOST:
                    self._known.popitem(last=False)
        return job

    def text(self, job: Job, basis: object, make: Callable[[], bytes]) -> bytes:
        """What `make` returns, or returned for the same job and the same `basis`."""
        with self._lock:
            known = self._known.get(job.id)
        if known is None or known.job is not job:
            return make()
        if not known.text or known.text_of is not basis:
            known.text, known.text_of = make(), basis
        return known.text
