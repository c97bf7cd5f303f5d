"""Every message that passes between server, storage and workers, defined once.

A job is a folder. Its history is a sequence of numbered entries (see `jobs.journal`); `Job` is the fold of
that history. Nothing in this file touches a disk or a socket.
"""

from __future__ import annotations

import base64
import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FPS = 25
CLIP_FRAMES = 80
"""Frames generated at once and kept, at 25 fps (paper, and official code)."""


class Frozen(BaseModel):
    """Base of every value in the contract: immutable, and an unknown field is an error rather than a silent
    drop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobState(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)


class Stage(StrEnum):
    """What is going on inside a job. Users see it beside the progress."""

    QUEUED = "queued"
    LOADING = "loading"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    MUXING = "muxing"
    DONE = "done"


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class Fit(StrEnum):
    """How a person image of another aspect ratio is brought to the frame. The official code stretches."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class GenerationParams(Frozen):
    """All settings of one video, fully resolved: a worker needs nothing else but the input files."""

    prompts: tuple[str, ...]
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    product_scale: float
    seed: int
    num_clips: int
    num_frames: int
    """Frames of the finished video at 25 fps: as long as the speech, or num_clips clips if that is shorter.
    """
    fit: Fit = Fit.COVER
    audio_face_mask: bool = False
    preset: Literal["exact", "parity"] = "exact"
    """`parity` repeats the official code's behaviour including its defects; see docs/model.md."""


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


class Entry(Frozen):
    """One numbered line of a job's journal."""

    at: datetime


class Submitted(Entry):
    type: Literal["submitted"] = "submitted"
    owner: str
    """Id of the API key that submitted the job; "local" when the server runs without keys."""
    checkpoint: str
    trained: bool
    params: GenerationParams
    inputs: InputFiles
    priority: Priority = Priority.NORMAL
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    retention_s: int
    """Seconds after the terminal entry until the job and its files are removed."""
    cost: float
    """Estimated work in clip·step·megapixels; only ratios between jobs matter (fair share and estimates)."""
    idempotency_claim: str | None = None
    """The claim in storage that leads repetitions of the submit to this job."""
    max_running: int | None = None
    """Jobs the owner may have running at once; the job waits while that many run. None: no limit."""


class Started(Entry):
    type: Literal["started"] = "started"
    attempt: int
    worker: str


class ClipFinished(Entry):
    """A finished clip: a later attempt continues behind it instead of rendering it again."""

    type: Literal["clip_finished"] = "clip_finished"
    attempt: int
    clip: int
    video: StoredFile
    motion: StoredFile
    gpu_seconds: float


InterruptReason = Literal["shutdown", "worker_lost", "child_died", "out_of_memory", "error", "stalled"]


class Interrupted(Entry):
    """An attempt ended without a verdict on the job, which is queued again."""

    type: Literal["interrupted"] = "interrupted"
    attempt: int
    reason: InterruptReason
    burns_attempt: bool
    """A graceful stop burns no attempt; anything that could be the job's own fault does."""
    message: str = ""


class Succeeded(Entry):
    type: Literal["succeeded"] = "succeeded"
    attempt: int
    video: StoredFile
    poster: StoredFile | None = None
    duration_s: float
    gpu_seconds: float


class Failed(Entry):
    type: Literal["failed"] = "failed"
    attempt: int
    error: JobError


class Canceled(Entry):
    type: Literal["canceled"] = "canceled"
    by: str


JournalEntry = Annotated[
    Submitted | Started | ClipFinished | Interrupted | Succeeded | Failed | Canceled,
    Field(discriminator="type"),
]
JOURNAL_ENTRY: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)


class Job(Frozen):
    """The state of a job: the fold of its journal up to and including entry `sequence`."""

    id: str
    sequence: int
    """Number of the newest entry read."""
    submitted: Submitted
    state: JobState
    attempt: int = 0
    """Number of the newest attempt; it is also the fencing token, because only one attempt can append entry n
    + 1.
    """
    burned_attempts: int = 0
    worker: str | None = None
    started_at: datetime | None = None
    """Start of the first attempt."""
    attempt_started_at: datetime | None = None
    completed_at: datetime | None = None
    clips: tuple[ClipFinished, ...] = ()
    video: StoredFile | None = None
    poster: StoredFile | None = None
    duration_s: float | None = None
    error: JobError | None = None
    gpu_seconds: float = 0.0


class LiveProgress(Frozen):
    """Where a running attempt is. A hint kept in Redis: it may be missing or a moment old."""

    attempt: int
    stage: Stage
    clip: int = 0
    num_clips: int
    step: int = 0
    num_steps: int

    def percent(self) -> float:
        """0–100 over the whole job. Denoising is nearly all of the work, so it alone moves the bar within a
        clip.
        """
        if self.stage in (Stage.MUXING, Stage.DONE):
            return 99.0
        within = (
            1.0 if self.stage is Stage.DECODING else self.step / self.num_steps if self.num_steps else 0.0
        )
        return min(99.0, 100.0 * (self.clip + within) / max(1, self.num_clips))


class CheckpointDefaults(Frozen):
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    negative_prompt: str


class CheckpointCard(BaseModel):
    """`cointeract.json` in a checkpoint folder: what the server must know of a model without loading it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    trained: bool
    sizes: tuple[str, ...]
    """Recommended "WIDTHxHEIGHT"; the first is the default."""
    min_side: int
    max_pixels: int
    frames_per_clip: int = CLIP_FRAMES
    fps: int = FPS
    defaults: CheckpointDefaults
    pose: bool = True
    license: str = ""
    note: str = ""
    """What whoever sees its videos should know: shown beside them."""


class RunningJob(Frozen):
    """The attempt a worker is busy with. As long as a live worker names it, the attempt is not lost."""

    job_id: str
    attempt: int
    owner: str
    priority: Priority
    cost: float
    started_at: datetime
    progress: LiveProgress

    def fraction_done(self) -> float:
        return self.progress.percent() / 100


class WorkerInfo(Frozen):
    """What a worker says about itself with each heartbeat."""

    name: str
    checkpoint: str
    device: str
    ready: bool = False
    """False while the model is being loaded."""
    problem: str | None = None
    """Why the model could not be loaded the last time; it is tried again and again."""
    running: RunningJob | None = None
    seconds_per_cost: float | None = None
    """Measured speed (seconds per unit of `Submitted.cost`), for estimates; None until the first clip is
    done.
    """


def utcnow() -> datetime:
    return datetime.now(UTC)


def new_job_id() -> str:
    """`job_` + 48 bits of time + 128 random bits: sorts by creation, cannot be guessed, is safe in a path and
    a URL.
    """
    raw = int(time.time() * 1000).to_bytes(6, "big") + secrets.token_bytes(16)
    # base32hex, unlike base32, keeps the order of the bytes, so a directory listing is in order of creation.
    return "job_" + base64.b32hexencode(raw).decode().rstrip("=").lower()
