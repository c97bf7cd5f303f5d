"""Removing finished jobs whose time is up, and what dead processes left in scratch.

A finished job has a marker "done/<expiry>-<job id>", so that it costs nothing until its time is up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from contract.job import JOB_ID, JobState
from contract.state import Job
from jobs.artifacts import SCRATCH_AGE_S, ArtifactStore
from jobs.clock import Clock, ClockNotTrusted
from jobs.journal import JobNotFound, Journal, UnreadableJob
from jobs.record_kinds import RecordKind
from workers.metrics import CLOCK_TRUSTED
from workers.scratch import attempt_of_folder

log = logging.getLogger(__name__)

_FOLDER = "done"
_MARKER = re.compile(rf"(?P<expiry>\d{{12}})-(?P<job>{JOB_ID.pattern})")

MARKER_RECORDS: Final = RecordKind(_FOLDER, _MARKER, lambda name, data: None)
"""Their names say it all."""


@dataclass
class Expiry:
    """Deletes by the time that this machine, storage and Redis agree on; not at all if they disagree."""

    store: ArtifactStore
    clock: Clock
    _distrust: str = field(default="", init=False)

    @property
    def journal(self) -> Journal:
        return Journal(self.store)

    def mark(self, job: Job) -> None:
        """Remember when a finished job may go. Raises OSError."""
        expiry = int(self.journal.ended_at(job)) + job.submitted.retention_s
        self.store.create(f"{_FOLDER}/{expiry:012d}-{job.id}", b"")

    def markers(self) -> list[tuple[int, str]]:
        """(expiry, job id) of all finished jobs, soonest first."""
        found = []
        for name in self.store.list_names(_FOLDER):
            if match := _MARKER.fullmatch(name):
                found.append((int(match["expiry"]), match["job"]))
            else:
                self.store.passed_over.note("stray", f"{_FOLDER}/{name}", "not a marker of ours")
        return found

    def remove_due(self, say_alive: Callable[[], None]) -> None:
        """Remove everything whose time is up. Raises OSError if storage fails as a whole."""
        try:
            now = self.clock.now()
        except ClockNotTrusted as reason:
            CLOCK_TRUSTED.set(0)
            if not self._distrust:
                log.error("%s", reason)
            self._distrust = str(reason)
            return
        CLOCK_TRUSTED.set(1)
        if self._distrust:
            log.info("the clock is trusted again")
            self._distrust = ""
        for expiry, job_id in self.markers():
            if expiry > now:
                break
            say_alive()
            self._remove(expiry, job_id)
        self.remove_leftovers(now)

    def remove_leftovers(self, now: float) -> None:
        """Remove what dead processes left on this machine, and unfinished in storage. Raises OSError."""
        self.store.remove_leftovers(now, SCRATCH_AGE_S, self._is_live_attempt)

    def _remove(self, expiry: int, job_id: str) -> None:
        try:
            job = self.journal.read(job_id)
        except JobNotFound:  # deleted already
            self.store.remove(f"{_FOLDER}/{expiry:012d}-{job_id}")
            return
        except (UnreadableJob, OSError) as error:
            self.store.passed_over.note("job", job_id, error)
            return
        if job.state.is_terminal:
            self.journal.remove(job)
            log.info("removed: its time was up", extra={"job_id": job_id})
        self.store.remove(f"{_FOLDER}/{expiry:012d}-{job_id}")

    def _is_live_attempt(self, name: str) -> bool:
        """Whether a folder in scratch belongs to an attempt that goes on, or that we cannot judge."""
        found = attempt_of_folder(name)
        if found is None:
            return False
        job_id, attempt = found
        try:
            job = self.journal.read(job_id)
        except JobNotFound:
            return False
        except (UnreadableJob, OSError):
            return True
        return job.state is JobState.PROCESSING and job.attempt == attempt
