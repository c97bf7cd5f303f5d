"""The journal of a job: numbered entries, the only truth about what happened to it.

Claims, results, cancels and requeues race between processes that may be stopped, killed, or cut off from
Redis. The journal decides these races with nothing but an atomic create. Whoever has read entry n may try to
create entry n + 1. If somebody else was faster, the create fails, and the loser reads on and decides anew. So
a job cannot be claimed twice from one state, an old attempt cannot publish over a newer one, and a canceled
job cannot succeed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from contract.entries import (
    Canceled,
    ClipFinished,
    Failed,
    Interrupted,
    InterruptReason,
    JobChanges,
    JournalEntry,
    Started,
    Submitted,
    Succeeded,
    stored_entry,
)
from contract.job import JOB_ID, JobError, JobState, Stage, StoredFile, utcnow
from contract.memory import MemoryMode
from contract.state import Job
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.record_kinds import RecordKind

JOBS_FOLDER = "jobs"
_CHANGES = "changes.json"

CHANGES_RECORDS = RecordKind("", re.compile(re.escape(_CHANGES)), lambda name, data: JobChanges.stored(data))


class JobNotFound(Exception):
    """No job with this id is stored: it never was, or it was removed."""


class Outdated(Exception):
    """Somebody else wrote to the journal first. Read the job again and decide anew."""


class UnreadableJob(ValueError):
    """The journal is damaged, or a newer version has written an entry of an unknown kind.

    The job is left alone, and all other jobs go on.
    """

    def __init__(self, job_id: str, why: object, submitted: Submitted | None = None) -> None:
        super().__init__(str(why))
        self.job_id = job_id
        self.submitted = submitted
        """Its first entry, if that much could be read."""


class IllegalEntry(Exception):
    """The entry cannot follow the state of the job, such as a cancel after the end. Nothing was written."""


def job_prefix(job_id: str) -> str:
    """The folder of a job in the store."""
    return f"{JOBS_FOLDER}/{job_id}"


def file_key(job_id: str, file: StoredFile) -> str:
    """The key of a job's file in the store."""
    return f"{job_prefix(job_id)}/{file.name}"


def in_short(error: ValidationError) -> str:
    """What is wrong with an entry: the first thing wrong, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def entry_key(job_id: str, sequence: int) -> str:
    """The key of an entry in the store."""
    return f"{job_prefix(job_id)}/journal/{sequence:06d}.json"


def _changes_key(job_id: str) -> str:
    return f"{job_prefix(job_id)}/{_CHANGES}"


def gone_key(claim: str) -> str:
    """The key of the mark that says that the job of this idempotency claim was removed."""
    return f"{claim.removesuffix('.claim')}.gone"


def _may_follow(job: Job, entry: JournalEntry) -> bool:
    match entry:
        case Submitted():
            return False
        case Started():
            return job.state is JobState.QUEUED and entry.attempt == job.attempt + 1
        case Canceled():
            return not job.state.is_terminal
        case ClipFinished() | Interrupted() | Succeeded() | Failed():
            in_order = not isinstance(entry, ClipFinished) or entry.clip == len(job.clips)
            return job.state is JobState.PROCESSING and entry.attempt == job.attempt and in_order


def _changes(job: Job, entry: JournalEntry) -> dict[str, object]:
    match entry:
        case Submitted():
            return {}  # never asked: it follows no entry
        case Started():
            return {
                "state": JobState.PROCESSING,
                "attempt": entry.attempt,
                "worker": entry.worker,
                "attention": entry.attention,
                "started_at": job.started_at or entry.at,
            }
        case ClipFinished():
            return {"clips": (*job.clips, entry), "gpu_seconds": job.gpu_seconds + entry.gpu_seconds}
        case Interrupted():
            burned = job.burned_attempts + entry.burns_attempt
            mode = entry.memory_mode or job.memory_mode
            return {
                "state": JobState.QUEUED,
                "worker": None,
                "burned_attempts": burned,
                "memory_mode": mode,
            }
        case Succeeded():
            return {
                "state": JobState.SUCCEEDED,
                "completed_at": entry.at,
                "video": entry.video,
                "content_sha256": entry.content_sha256,
                "poster": entry.poster,
                "duration_s": entry.duration_s,
                "gpu_seconds": job.gpu_seconds + entry.gpu_seconds,
                "worker": None,
            }
        case Failed():
            end = {"state": JobState.FAILED, "completed_at": entry.at, "worker": None}
            return {**end, "error": entry.error}
        case Canceled():
            end = {"state": JobState.CANCELED, "completed_at": entry.at, "worker": None}
            return {**end, "cancel_reason": entry.reason}


def apply(job: Job, entry: JournalEntry) -> Job:
    """The job after one more entry. This pure function is the whole meaning of a journal.

    Raises IllegalEntry.
    """
    sequence = job.sequence + 1
    if not _may_follow(job, entry):
        raise IllegalEntry(
            f"job {job.id} ({job.state}, attempt {job.attempt}): {entry!r} cannot be entry {sequence}"
        )
    return job.model_copy(update={"sequence": sequence, **_changes(job, entry)})


def submitted_job(job_id: str, submitted: Submitted) -> Job:
    """The job after entry 0."""
    return Job(id=job_id, sequence=0, submitted=submitted, state=JobState.QUEUED, clips=submitted.clips)


@dataclass(frozen=True)
class Journal:
    """Reads and writes the journals in a store. It holds no state of its own."""

    store: ArtifactStore

    def ids(self) -> list[str]:
        """Ids of all stored jobs, oldest first. Whatever else lies in the folder is passed over."""
        found = []
        for name in self.store.list_names(JOBS_FOLDER):
            if JOB_ID.fullmatch(name):
                found.append(name)
            else:
                self.store.passed_over.note("stray", f"{JOBS_FOLDER}/{name}", "not the name of a job")
        return found

    def entries(self, job_id: str, first: int = 0) -> Iterator[JournalEntry]:
        """The entries from number `first` on, in order. There are none if the job is not stored.

        Raises UnreadableJob, and OSError if storage does not answer.
        """
        sequence = first
        while (data := self._data(job_id, sequence)) is not None:
            try:
                yield stored_entry(data)
            except ValidationError as error:
                raise UnreadableJob(job_id, f"entry {sequence} cannot be read: {in_short(error)}") from error
            sequence += 1

    def _data(self, job_id: str, sequence: int) -> bytes | None:
        try:
            return self.store.read(entry_key(job_id, sequence))
        except NoFileOfOurs as error:
            raise UnreadableJob(job_id, f"entry {sequence} cannot be read: {error.strerror}") from error

    def follow(self, job: Job) -> Iterator[tuple[JournalEntry, Job]]:
        """Each entry that is newer than `job`, with the job as it is after the entry.

        Raises UnreadableJob, and OSError if storage does not answer.
        """
        try:
            for entry in self.entries(job.id, job.sequence + 1):
                job = apply(job, entry)
                yield entry, job
        except (IllegalEntry, UnreadableJob) as error:
            raise UnreadableJob(job.id, error, job.submitted) from error

    def as_of(self, job_id: str, sequence: int) -> Job:
        """The job as it was after entry `sequence`, without later changes.

        Raises JobNotFound if there is no such job or entry.
        """
        job = self._at_submit(job_id, changed=False)
        for _, later in islice(self.follow(job), sequence):
            job = later
        if job.sequence != sequence:
            raise JobNotFound(job_id)
        return job

    def read(self, job_id: str, known: Job | None = None) -> Job:
        """The job as of now. If `known` is the result of an earlier read, only newer entries are read.

        Raises JobNotFound, UnreadableJob, and OSError if storage does not answer.
        """
        if known is None:
            job = self._at_submit(job_id)
        elif self.store.exists(entry_key(job_id, 0)):
            job = known
        else:
            raise JobNotFound(job_id)
        for _, later in self.follow(job):
            job = later
        return job

    def change(self, job: Job, changes: JobChanges) -> Job:
        """Replace what may be changed about a stored job. The last change counts.

        A change is no event in the job's history. It is kept beside the entries, so that it disturbs nobody
        who waits for the next entry.

        Raises JobNotFound, and OSError if the store cannot write.
        """
        try:
            self.store.write(_changes_key(job.id), changes.model_dump_json().encode())
        except FileNotFoundError as error:
            raise JobNotFound(job.id) from error
        return self.read(job.id)

    def changed_at(self, job_id: str) -> float | None:
        """When the job was changed last, by the storage's clock; None if it never was. Raises OSError."""
        return self.store.written_at(_changes_key(job_id))

    def _changed(self, job_id: str, submitted: Submitted) -> Submitted:
        """What was submitted, with the changes since. A damaged change is ignored: the job matters more."""
        try:
            data = self.store.read(_changes_key(job_id))
            changes = None if data is None else JobChanges.stored(data)
        except (ValueError, NoFileOfOurs) as error:
            self.store.passed_over.note("stray", _changes_key(job_id), error)
            return submitted
        if changes is None:
            return submitted
        return submitted.model_copy(update={"metadata": changes.metadata, "priority": changes.priority})

    def _at_submit(self, job_id: str, changed: bool = True) -> Job:
        submitted = next(self.entries(job_id), None)
        if submitted is None:
            raise JobNotFound(job_id)
        if not isinstance(submitted, Submitted):
            raise UnreadableJob(job_id, f"the first entry is {submitted.type}, not submitted")
        return submitted_job(job_id, self._changed(job_id, submitted) if changed else submitted)

    def ended_at(self, job: Job) -> float:
        """When the job ended, in Unix time: as its worker says, or as storage stamped the last entry if that
        is later. So a worker whose clock is late does not make its own results old.
        """
        said = job.completed_at.timestamp() if job.completed_at else 0.0
        return max(said, self.store.written_at(entry_key(job.id, job.sequence)) or 0.0)

    def is_stored(self, job_id: str) -> bool:
        """Whether there is such a job, readable or not."""
        return self.store.exists(entry_key(job_id, 0))

    def moved_on(self, job_id: str, sequence: int) -> bool:
        """Whether there is an entry after number `sequence`. Cheaper than reading it."""
        return self.store.exists(entry_key(job_id, sequence + 1))

    def append(self, job: Job, entry: JournalEntry) -> Job:
        """Write `entry` as the one that follows `job`, durably. Returns the job after it.

        Raises Outdated if somebody appended since `job` was read, JobNotFound if the job was removed,
        IllegalEntry if `entry` makes no sense after `job`, OSError if the store cannot write.
        """
        # Before the write: an entry that cannot be applied must never reach the disk.
        updated = apply(job, entry)
        data = entry.model_dump_json().encode()
        key = entry_key(job.id, updated.sequence)
        # Equal to the last byte of its time, it is ours: an earlier call failed behind the create.
        if self.store.create(key, data) or self.store.read(key) == data:
            return updated
        if not self.store.exists(entry_key(job.id, 0)):
            raise JobNotFound(job.id)
        raise Outdated(job.id)

    def submit(self, job_id: str, folder: Path, submitted: Submitted) -> Job:
        """Make the local folder `folder`, which holds the input files under their stored names, a job.

        The job is durable when this returns, and so is the idempotency claim that `submitted` names. Nobody
        sees the job before. The caller then announces it to the queue; if the caller dies before that, the
        reaper announces it.

        Raises FileExistsError if there is such a job already, OSError if the store cannot write.
        """
        entry = folder / Path(entry_key(job_id, 0)).relative_to(job_prefix(job_id))
        entry.parent.mkdir(mode=0o700)
        entry.write_text(submitted.model_dump_json(), encoding="utf-8")
        claim = submitted.idempotency_claim
        self.store.adopt_folder(folder, job_prefix(job_id), after=[] if claim is None else [claim])
        return submitted_job(job_id, submitted)

    def remove(self, job: Job) -> None:
        """Remove a job with all its files.

        An idempotency claim without a job means that a submit crashed half-way: its repetition then stores
        the job. A mark beside the claim says that this job was stored and then removed, so that a repetition
        is refused.
        """
        claim = job.submitted.idempotency_claim
        if claim is not None and self.store.exists(claim):
            self.store.create(gone_key(claim), b"")
        self.store.remove_folder(job_prefix(job.id))


def verdict(
    job: Job,
    *,
    reason: InterruptReason,
    message: str,
    max_attempts: int,
    stage: Stage = Stage.LOADING,
    burns_attempt: bool = True,
    memory_mode: MemoryMode | None = None,
) -> Interrupted | Failed:
    """The entry for an attempt that ended badly: the job is queued again, or fails after its last attempt."""
    if not burns_attempt or job.burned_attempts + 1 < max_attempts:
        return Interrupted(
            at=utcnow(),
            attempt=job.attempt,
            reason=reason,
            burns_attempt=burns_attempt,
            memory_mode=memory_mode,
            message=message,
        )
    total = f" (attempt {job.burned_attempts + 1} of {max_attempts})" if max_attempts > 1 else ""
    return Failed(
        at=utcnow(), attempt=job.attempt, error=JobError(code=reason, message=message + total, stage=stage)
    )
