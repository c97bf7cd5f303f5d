"""The journal of a job: numbered entries, each created exclusively. The only truth about what happened to a
job.

Why: claims, publishes, cancels and re-queues race between processes that may be stopped, killed, or cut off
from Redis. An attempt appends entry n + 1 only on the strength of having read entry n; if anybody else
appended first, the create fails, the loser reads what happened and decides anew. So a job cannot be claimed
twice from one state, a stale attempt cannot publish over a newer one, and a canceled job cannot succeed, with
nothing but an atomic create to rely on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.entries import (
    JOURNAL_ENTRY,
    Canceled,
    ClipFinished,
    Failed,
    Interrupted,
    InterruptReason,
    JournalEntry,
    Started,
    Submitted,
    Succeeded,
)
from contract.job import JobError, JobState, Stage, utcnow
from contract.state import Job
from jobs.artifacts import ArtifactStore


class JobNotFound(Exception):
    """No job with this id is stored (it never was, or it was removed)."""


class Outdated(Exception):
    """Somebody else wrote to the journal first. Read the job again and decide anew."""


class IllegalEntry(Exception):
    """The entry cannot follow the state it was meant for, such as a cancel after the end. Nothing was
    written.
    """


def job_prefix(job_id: str) -> str:
    return f"jobs/{job_id}"


def entry_key(job_id: str, sequence: int) -> str:
    return f"{job_prefix(job_id)}/journal/{sequence:06d}.json"


def gone_key(claim: str) -> str:
    """Where the mark lies that says that the job of an idempotency claim was removed."""
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


def apply(job: Job, entry: JournalEntry) -> Job:
    """The state after one more entry. Pure; the journal's whole meaning is in this function. Raises
    IllegalEntry.
    """
    sequence = job.sequence + 1
    if not _may_follow(job, entry):
        raise IllegalEntry(
            f"job {job.id} ({job.state}, attempt {job.attempt}): {entry!r} cannot be entry {sequence}"
        )
    match entry:
        case Submitted():
            raise IllegalEntry(f"job {job.id}: entry {sequence} is a second submission")
        case Started():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "state": JobState.PROCESSING,
                    "attempt": entry.attempt,
                    "worker": entry.worker,
                    "started_at": job.started_at or entry.at,
                    "attempt_started_at": entry.at,
                }
            )
        case ClipFinished():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "clips": (*job.clips, entry),
                    "gpu_seconds": job.gpu_seconds + entry.gpu_seconds,
                }
            )
        case Interrupted():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "state": JobState.QUEUED,
                    "worker": None,
                    "burned_attempts": job.burned_attempts + entry.burns_attempt,
                }
            )
        case Succeeded():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "state": JobState.SUCCEEDED,
                    "completed_at": entry.at,
                    "video": entry.video,
                    "poster": entry.poster,
                    "duration_s": entry.duration_s,
                    "gpu_seconds": job.gpu_seconds + entry.gpu_seconds,
                    "worker": None,
                }
            )
        case Failed():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "state": JobState.FAILED,
                    "completed_at": entry.at,
                    "error": entry.error,
                    "worker": None,
                }
            )
        case Canceled():
            return job.model_copy(
                update={
                    "sequence": sequence,
                    "state": JobState.CANCELED,
                    "completed_at": entry.at,
                    "worker": None,
                }
            )


@dataclass(frozen=True)
class Journal:
    """Reads and appends journals in a store. Holds no state of its own."""

    store: ArtifactStore

    def read(self, job_id: str, known: Job | None = None) -> Job:
        """The job as of now. With `known`, an earlier read, only newer entries are read.

        Raises JobNotFound.
        """
        if known is None:
            first = self.store.read(entry_key(job_id, 0))
            if first is None:
                raise JobNotFound(job_id)
            submitted = JOURNAL_ENTRY.validate_json(first)
            if not isinstance(submitted, Submitted):
                raise ValueError(f"job {job_id}: the first entry is {submitted.type}, not submitted")
            job = Job(id=job_id, sequence=0, submitted=submitted, state=JobState.QUEUED)
        else:
            job = known
            if not self.store.exists(entry_key(job_id, 0)):
                raise JobNotFound(job_id)
        while (data := self.store.read(entry_key(job_id, job.sequence + 1))) is not None:
            job = apply(job, JOURNAL_ENTRY.validate_json(data))
        return job

    def append(self, job: Job, entry: JournalEntry) -> Job:
        """Durably append `entry` on the strength of `job`; returns the new state.

        Raises Outdated if the journal moved on since `job` was read, JobNotFound if the job was removed,
        IllegalEntry if `entry` makes no sense after `job`, OSError if the store cannot write.
        """
        updated = apply(
            job, entry
        )  # before writing: an entry that cannot be applied must never reach the disk
        data = entry.model_dump_json().encode()
        if self.store.create(entry_key(job.id, updated.sequence), data):
            return updated
        if self.store.read(entry_key(job.id, 0)) is None:
            raise JobNotFound(job.id)
        raise Outdated(job.id)

    def submit(self, job_id: str, folder: Path, submitted: Submitted) -> Job:
        """Make `folder` (a local folder holding the input files under their stored names) the job `job_id`.

        Durable, and visible in one step, when it returns. The caller then announces the job to the queue; if
        it dies before, the reaper does.
        """
        journal = folder / "journal"
        journal.mkdir()
        (journal / "000000.json").write_bytes(submitted.model_dump_json().encode())
        self.store.adopt_folder(folder, job_prefix(job_id))
        return Job(id=job_id, sequence=0, submitted=submitted, state=JobState.QUEUED)

    def remove(self, job: Job) -> None:
        """Remove a job with all its files. As long as its Idempotency-Key is remembered, a mark beside that
        tells this from a crash, after which a repetition of the submit makes the job.
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
) -> Interrupted | Failed:
    """How an attempt that ended badly is recorded: the job is queued again, or fails if that was its last
    attempt.
    """
    if not burns_attempt or job.burned_attempts + 1 < max_attempts:
        return Interrupted(
            at=utcnow(), attempt=job.attempt, reason=reason, burns_attempt=burns_attempt, message=message
        )
    total = f" (attempt {job.burned_attempts + 1} of {max_attempts})" if max_attempts > 1 else ""
    return Failed(
        at=utcnow(), attempt=job.attempt, error=JobError(code=reason, message=message + total, stage=stage)
    )
