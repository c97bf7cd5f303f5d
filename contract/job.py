"""The words that describe a job: its id, states, stages, priorities and files."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum

from contract.frozen import Frozen


class JobState(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)

    @property
    def in_words(self) -> str:
        """The state as the end of a sentence that begins "The job"."""
        verb = {JobState.QUEUED: "is", JobState.PROCESSING: "is", JobState.CANCELED: "was"}
        return f"{verb.get(self, 'has')} {self.value}"


class Stage(StrEnum):
    """What a job is doing. Users see it beside the progress."""

    QUEUED = "queued"
    LOADING = "loading"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    MUXING = "muxing"
    DONE = "done"
    CANCELED = "canceled"


OnProgress = Callable[[Stage, int, int], None]
"""Called with stage, clip and finished steps, at least once per denoising step. An exception from it ends the
rendering; that is how to cancel one.
"""


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class CancelReason(StrEnum):
    """Why a job was canceled."""

    REQUEST = "request"
    """Its owner, or an admin, asked for it."""
    DEADLINE = "deadline"
    """It was not over in the time that it had (`cancel_after`)."""


class StoredFile(Frozen):
    """A file of a job. `name` is relative to the job's folder and always chosen by us, never by a client."""

    name: str
    sha256: str
    size: int
    media_type: str


class InputFiles(Frozen):
    person_image: StoredFile
    audio: StoredFile
    product_image: StoredFile | None = None
    pose_video: StoredFile | None = None


class JobError(Frozen):
    """Why a job failed. `code` is stable and documented, `message` is for people, `stage` says where it
    happened.
    """

    code: str
    message: str
    stage: Stage


JOB_ID = re.compile(r"job_[0-9a-v]{36}")
"""What `new_job_id` makes. A folder with another name is not a job."""


def utcnow() -> datetime:
    return datetime.now(UTC)


def new_job_id() -> str:
    """`job_` + 48 bits of time + 128 random bits: sorts by creation, cannot be guessed, is safe in a path and
    a URL.
    """
    raw = int(time.time() * 1000).to_bytes(6, "big") + secrets.token_bytes(16)
    # base32hex, unlike base32, keeps the order of the bytes, so a directory listing is in order of creation.
    return "job_" + base64.b32hexencode(raw).decode().rstrip("=").lower()
