"""Who has how many jobs: a summary of the store, kept in memory for lists, limits and the cap on the queue.

It is a cache. The journals are the truth, and `refresh` catches up with them. The routes of a single job do
not look here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from contract.job import JobState, utcnow
from contract.speed import Speed
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, Journal, UnreadableJob
from server.errors import ApiError
from server.index_copy import IndexCopy
from server.job_summary import JobSummary
from server.keys import ANONYMOUS_OWNER, KeyLimits
from server.metrics import Unfinished
from server.usage import DAY, UsageLedger

LIST_SHARE: Final = 0.05
"""Largest share of the time that listing all stored jobs may take."""
CHANGED_SLACK_S: Final = 60.0
"""A change this short before a copy of the index may be missing in it."""
UNFINISHED: Final = (JobState.QUEUED, JobState.PROCESSING)


@dataclass(frozen=True)
class JobFilter:
    """The jobs that a list should hold. None or an empty value means any."""

    owner: str | None = None
    states: frozenset[JobState] = frozenset()
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    labels: frozenset[bytes] = frozenset()
    """Labels that a job must all have, made by `label_of`."""

    def takes(self, job: JobSummary) -> bool:
        return (
            (self.owner is None or job.owner == self.owner)
            and (not self.states or job.state in self.states)
            and (self.model is None or job.checkpoint == self.model)
            and (self.created_after is None or job.created_at > self.created_after)
            and (self.created_before is None or job.created_at < self.created_before)
            and self.labels <= job.labels
        )


class JobIndex:
    """The index of one server. Threads may share it."""

    def __init__(self, store: ArtifactStore, max_queued_jobs: int, copy: IndexCopy | None = None) -> None:
        self._copy = copy
        self._next_list = 0.0
        self._as_of: float | None = None
        """When the first look began, by the storage's clock."""
        self._store, self._journal, self._max_queued_jobs = store, Journal(store), max_queued_jobs
        self.usage = UsageLedger(store)
        self._jobs: dict[str, JobSummary] = {}
        self._queued: Counter[str] = Counter()
        """The number of waiting jobs by owner. In a flood, a refusal need not count all jobs again."""
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._speeds: dict[str, Speed] = {}
        """Speeds by checkpoint, as far as they have been measured."""
        self._arriving: dict[str, int] = {}
        """The number of admitted submits that are not stored yet, by owner.

        They count, because otherwise a burst would pass every limit together.
        """

    def refresh(self) -> None:
        """Catch up with the store. Raises OSError if it cannot be listed; one bad job is passed over."""
        with self._refreshing:
            is_first = self._load()
            # Before listing: a job that is put meanwhile must not be taken for a gone one.
            known = dict(self._jobs)
            stored = self._journal.ids()
            self._catch_up(stored, known, known.keys() - stored)
        if is_first:
            self.save_copy()

    def keep_up(self) -> None:
        """Catch up with the unfinished jobs; with all jobs as often as a share of the time allows, however
        many there are. Raises OSError.
        """
        started = time.monotonic()
        if started < self._next_list:
            with self._refreshing:
                known = {job_id: job for job_id, job in dict(self._jobs).items() if job.remaining is not None}
                self._catch_up(list(known), known, set())
            return
        self.refresh()
        now = time.monotonic()
        self._next_list = now + (now - started) / LIST_SHARE

    def _catch_up(self, job_ids: Sequence[str], known: Mapping[str, JobSummary], gone: set[str]) -> None:
        fresh: dict[str, JobSummary] = {}
        for job_id in job_ids:
            try:
                if (summary := self._news_of(job_id, known.get(job_id))) is not None:
                    fresh[job_id] = summary
            except JobNotFound:
                continue
            except UnreadableJob as error:
                self._store.passed_over.note("job", job_id, error)
                gone |= {job_id}
            except OSError as error:  # what was read before still counts
                self._store.passed_over.note("job", job_id, error)
        spent = self.usage.unread()
        with self._lock:
            for job_id in gone | fresh.keys():
                self._set(job_id, fresh.get(job_id))
            self.usage.take(spent)

    def _load(self) -> bool:
        """Read the copy at the first look; returns whether this is it."""
        if self._copy is None or self._as_of is not None:
            return False
        self._as_of = self._store.now()
        self._copy.load()
        return True

    def save_copy(self) -> None:
        """Keep what is known of finished jobs for the next start. It is right as of the start of this
        process: what others change about finished jobs is not looked for.
        """
        if self._copy is not None and self._as_of is not None:
            with self._lock:
                jobs = list(self._jobs.values())
            self._copy.save(jobs, self._as_of)

    def _copied(self, job_id: str) -> JobSummary | None:
        """What the copy says of a job, unless it was changed since or a moment before."""
        found = None if self._copy is None else self._copy.jobs.get(job_id)
        if found is None or self._copy is None:
            return None
        changed_at = self._journal.changed_at(job_id)
        return None if changed_at is not None and changed_at > self._copy.as_of - CHANGED_SLACK_S else found

    def learn_speeds(self, speeds: Mapping[str, Speed]) -> None:
        """Note how fast each checkpoint is rendered."""
        with self._lock:
            self._speeds = dict(speeds)

    def unfinished_checkpoints(self) -> set[str]:
        """The checkpoints that unfinished jobs wait for."""
        with self._lock:
            return {job.checkpoint for job in self._jobs.values() if job.remaining is not None}

    def _news_of(self, job_id: str, known: JobSummary | None) -> JobSummary | None:
        """The job's summary if it is not the known one."""
        if known is None and self._store.passed_over.was_just_noted("job", job_id):
            return None
        if known is not None and (
            known.state.is_terminal or not self._journal.moved_on(job_id, known.sequence)
        ):
            return None
        if known is None and (copied := self._copied(job_id)) is not None:
            return copied
        summary = JobSummary.of(self._journal.read(job_id))
        self._store.passed_over.forget("job", job_id)
        return summary

    def _set(self, job_id: str, summary: JobSummary | None) -> None:
        before = self._jobs.pop(job_id, None)
        if before is not None and before.state is JobState.QUEUED:
            self._queued[before.owner] -= 1
        if summary is not None:
            self._jobs[job_id] = summary
            self._queued[summary.owner] += summary.state is JobState.QUEUED

    def put(self, job: Job) -> None:
        """Note a job that this process has stored or changed."""
        with self._lock:
            self._set(job.id, JobSummary.of(job))

    def remove(self, job: Job) -> None:
        """Note that this process deletes a job, and keep what the job has cost. Raises OSError."""
        spent = self.usage.write(job, JobSummary.of(job).last_at)
        with self._lock:
            self.usage.take(spent)
            self._set(job.id, None)

    def expire(self, now: float) -> None:
        """Forget what no longer counts at `now`. Raises OSError."""
        gone = self.usage.remove_old(now)
        with self._lock:
            self.usage.forget(gone)

    def sequence_of(self, job_id: str) -> int:
        """The number of the newest journal entry that is known; -1 if the job is not."""
        with self._lock:
            known = self._jobs.get(job_id)
        return -1 if known is None else known.sequence

    def page(self, wanted: JobFilter, after: str | None, limit: int, oldest_first: bool = False) -> list[str]:
        """The ids of up to `limit` wanted jobs that come after `after`, newest first by default."""
        with self._lock:
            jobs = sorted(
                (
                    job.id
                    for job in self._jobs.values()
                    if (after is None or (job.id > after if oldest_first else job.id < after))
                    and wanted.takes(job)
                ),
                reverse=not oldest_first,
            )
        return jobs[:limit]

    def with_webhooks(self) -> dict[str, JobSummary]:
        """The jobs that named a webhook."""
        with self._lock:
            return {job.id: job for job in self._jobs.values() if job.webhook_host}

    def stored_bytes(self, owner: str) -> int:
        """The bytes of an owner's jobs, including those that unfinished jobs will still store."""
        with self._lock:
            return self._stored_bytes(owner)

    def _stored_bytes(self, owner: str) -> int:
        return sum(job.stored_bytes for job in self._jobs.values() if job.owner == owner)

    def summaries(self, owner: str) -> list[JobSummary]:
        """An owner's jobs."""
        with self._lock:
            return [job for job in self._jobs.values() if job.owner == owner]

    def owners(self) -> set[str]:
        """All owners of stored jobs."""
        with self._lock:
            return {job.owner for job in self._jobs.values()}

    def spent(self, owner: str) -> float:
        """GPU seconds of the last day, including those of deleted jobs."""
        with self._lock:
            return self._spent(owner)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are stored, by state."""
        with self._lock:
            states = [job.state for job in self._jobs.values()]
        return {state: states.count(state) for state in JobState}

    def unfinished(self) -> dict[tuple[str, JobState], Unfinished]:
        """How many jobs are not over, and what they still need, by checkpoint and state.

        Known checkpoints stay with zeros, so that whoever scales by these numbers sees them fall to zero.
        """
        with self._lock:
            jobs, speeds = list(self._jobs.values()), self._speeds
        checkpoints = {job.checkpoint for job in jobs}
        counts = {(name, state): 0 for name in checkpoints for state in UNFINISHED}
        seconds = dict.fromkeys(counts, 0.0)
        for job in jobs:
            if job.remaining is not None:
                key = (job.checkpoint, job.state)
                counts[key] += 1
                if (speed := speeds.get(job.checkpoint)) is not None:
                    seconds[key] += speed.seconds(job.remaining)
        return {
            key: Unfinished(count, None if count and key[0] not in speeds else seconds[key])
            for key, count in counts.items()
        }

    def _spent(self, owner: str) -> float:
        since = utcnow() - DAY
        total = sum(
            job.gpu_seconds for job in self._jobs.values() if job.owner == owner and job.last_at > since
        )
        return total + self.usage.spent(owner)

    def _expected(self, owner: str, limit: float) -> float:
        """GPU seconds that the owner's unfinished jobs will take.

        While a checkpoint's speed is not measured, a job counts as a quarter of the limit.
        """
        total = 0.0
        for job in self._jobs.values():
            if job.owner == owner and job.remaining is not None:
                speed = self._speeds.get(job.checkpoint)
                total += limit / 4 if speed is None else speed.seconds(job.remaining)
        return total

    @contextmanager
    def admission(self, owner: str, limits: KeyLimits) -> Iterator[None]:
        """Let one submit in, and count it until the block ends. Raises ApiError (429) at a limit."""
        with self._lock:
            self._check(owner, limits)
            self._arriving[owner] = self._arriving.get(owner, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._arriving[owner] -= 1
                if not self._arriving[owner]:
                    del self._arriving[owner]

    def _check(self, owner: str, limits: KeyLimits) -> None:
        if self._queued.total() + sum(self._arriving.values()) >= self._max_queued_jobs:
            detail = f"The queue is full with {self._max_queued_jobs} waiting jobs; try again later."
            raise ApiError("queue_full", detail, limit=self._max_queued_jobs)
        own = self._queued[owner] + self._arriving.get(owner, 0)
        free = self._max_queued_jobs - self._queued.total() - sum(self._arriving.values())
        if owner != ANONYMOUS_OWNER and own >= free:  # a key may hold as many places as it leaves free
            detail = f"This key has {own} jobs waiting, its share of the queue; wait for some to start."
            raise ApiError("queued_jobs_limit", detail, limit=own)
        if limits.max_queued is not None and own >= limits.max_queued:
            detail = f"This key may have {limits.max_queued} jobs waiting, and has; wait for some to start."
            raise ApiError("queued_jobs_limit", detail, limit=limits.max_queued)
        self._check_reserves(owner, limits)

    def check_reserves(self, owner: str, limits: KeyLimits) -> None:
        """Raises ApiError (429) if the owner's jobs use up, or will use up, what the limits allow."""
        with self._lock:
            self._check_reserves(owner, limits)

    def _check_reserves(self, owner: str, limits: KeyLimits) -> None:
        most = limits.max_stored_bytes
        if most is not None and self._stored_bytes(owner) >= most:
            detail = f"This key's jobs take the {most} bytes that they may; delete some."
            raise ApiError("stored_bytes_limit", detail, limit=most, retry_after_s=60)
        limit = limits.gpu_seconds_per_day
        if limit is not None and self._spent(owner) + self._expected(owner, limit) >= limit:
            detail = (
                f"This key may use {limit} GPU seconds in 24 hours: it has used them, or its unfinished jobs "
                "will. Try again later."
            )
            raise ApiError("gpu_seconds_limit", detail, limit=limits.gpu_seconds_per_day, retry_after_s=3600)
