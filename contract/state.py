"""The state of a job: what its journal says up to one entry."""

from __future__ import annotations

from datetime import datetime, timedelta

from contract.attention import AttentionBackend
from contract.entries import ClipFinished, Submitted
from contract.frozen import Frozen
from contract.job import CancelReason, JobError, JobState, StoredFile
from contract.memory import MemoryMode


class Job(Frozen):
    """The state of a job: the fold of its journal up to and including entry `sequence`."""

    id: str
    sequence: int
    """Number of the newest entry read."""
    submitted: Submitted
    state: JobState
    attempt: int = 0
    """Number of the newest attempt. It is also the fencing token: only one attempt can append the next entry.
    """
    burned_attempts: int = 0
    memory_mode: MemoryMode | None = None
    """What a worker fell back to when its device had too little memory for this job; None: that never
    happened.
    """
    worker: str | None = None
    attention: AttentionBackend | None = None
    """The attention backend of the newest attempt."""
    started_at: datetime | None = None
    """Start of the first attempt."""
    completed_at: datetime | None = None
    clips: tuple[ClipFinished, ...] = ()
    """Finished clips, the shared ones first."""
    video: StoredFile | None = None
    content_sha256: str | None = None
    poster: StoredFile | None = None
    duration_s: float | None = None
    error: JobError | None = None
    cancel_reason: CancelReason | None = None
    """Why the job was canceled, if it was."""
    gpu_seconds: float = 0.0

    @property
    def cancel_at(self) -> datetime | None:
        """When the job is canceled if it is not over."""
        seconds = self.submitted.cancel_after_s
        return None if seconds is None else self.submitted.at + timedelta(seconds=seconds)
