"""The objects in the server's answers. Fields that a newer server adds are kept, not refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobStatus = Literal["queued", "processing", "succeeded", "failed", "canceled"]
FINAL_STATES = ("succeeded", "failed", "canceled")


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="allow")


class JobError(Answer):
    """Why a job failed."""

    code: str
    message: str
    stage: str = ""


class CheckpointUsed(Answer):
    """The model that a job is rendered with."""

    name: str
    trained: bool


class FileUrls(Answer):
    """Paths on the server, or absolute addresses where the server knows its public one."""

    video: str | None = None
    clips: list[str] = Field(default_factory=list)
    posters: list[str] = Field(default_factory=list)
    router_maps: list[str | None] = Field(default_factory=list)
    thumbnail: str | None = None
    stream: str | None = None
    """HLS playlist of the finished clips, with sound."""
    preview: str | None = None
    """What is finished so far as one MP4, with sound."""
    inputs: dict[str, str] = Field(default_factory=dict)
    events: str = ""


class JobUrls(FileUrls):
    """Where a job and its files are. They ask for the key."""

    self: str = ""
    cancel: str = ""


class Usage(Answer):
    """What a job has cost."""

    gpu_seconds: float = 0.0


class Warn(Answer):
    """A hint about an accepted request that is probably not as its sender meant it."""

    code: str
    message: str
    field: str | None = None


class Job(Answer):
    """A job as of now."""

    id: str
    status: JobStatus
    progress: float = 0.0
    """0 to 100."""
    stage: str = ""
    clip: int = 0
    """Clips finished or, while one is being made, its number counted from 0."""
    num_clips: int = 0
    step: int = 0
    num_steps: int = 0
    queue_position: int | None = None
    """1 = starts next."""
    estimated_start_at: datetime | None = None
    estimated_finish_at: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_at: datetime | None = None
    """When the job is canceled if it is not over (`cancel_after`)."""
    cancel_reason: str | None = None
    """request or deadline."""
    expires_at: datetime | None = None
    seed: int
    model: str
    checkpoint: CheckpointUsed
    params: dict[str, Any] = Field(default_factory=dict)
    """All settings as resolved: sent again with the same files, they give the same video."""
    exact: bool = True
    """Whether the video is what the checkpoint's own sampling gives."""
    priority: str = "normal"
    metadata: dict[str, str] = Field(default_factory=dict)
    parent: str | None = None
    """The job that this one was made from. It may be gone."""
    attempts: int = 0
    memory_mode: str | None = None
    """Set when a worker had too little device memory for this job and went on in this mode."""
    duration_s: float | None = None
    urls: JobUrls = Field(default_factory=JobUrls)
    error: JobError | None = None
    speech: Speech | None = None
    usage: Usage = Field(default_factory=Usage)
    warnings: list[Warn] = Field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more."""
        return self.status in FINAL_STATES


class LogLine(Answer):
    """One thing that happened to a job, or that a worker said about it."""

    at: datetime
    source: str
    """journal or worker."""
    attempt: int | None = None
    level: str
    message: str


class JobLog(Answer):
    """What happened to a job, oldest first."""

    data: list[LogLine]


class Speech(Answer):
    """What the person says, if it was given as text."""

    text: str
    voice: str
    model: str


class KeptFile(Answer):
    """A file that the server keeps for submits."""

    id: str
    """Give it in a submit instead of the file."""
    kind: str
    format: str
    sha256: str
    bytes: int
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    created_at: datetime
    expires_at: datetime


class KeptFileList(Answer):
    """All kept files, newest first."""

    data: list[KeptFile]


class DeliveryTry(Answer):
    """One try to deliver a message to a webhook."""

    at: datetime
    seconds: float
    status: int | None = None
    error: str | None = None


class Delivery(Answer):
    """A message to a job's webhook."""

    id: str
    """The `webhook-id` that it is sent with."""
    sequence: int
    event: str
    event_at: datetime
    state: str
    """pending, delivered, failed or not_sent."""
    next_try_at: datetime | None = None
    tries: list[DeliveryTry] = Field(default_factory=list)


class DeliveryList(Answer):
    """The messages to a job's webhook, oldest first."""

    data: list[Delivery]


class JobPage(Answer):
    """One page of jobs, newest first."""

    data: list[Job]
    last_id: str | None = None
    has_more: bool = False


class Validation(Answer):
    """What a submit of the same request would become."""

    model: str
    checkpoint: CheckpointUsed
    params: dict[str, Any]
    exact: bool = True
    duration_s: float
    queue_position: int | None = None
    estimated_start_at: datetime | None = None
    estimated_finish_at: datetime | None = None
    warnings: list[Warn] = Field(default_factory=list)


class ModelPreset(Answer):
    """A preset that a checkpoint offers, at its default settings."""

    id: str
    exact: bool = True
    num_inference_steps: int = 0
    num_computed_steps: int = 0
    """Steps that the network computes. A video takes time in proportion to them."""
    psnr_db: float | None = None
    """PSNR against the exact video, measured on this checkpoint."""


class Model(Answer):
    """A checkpoint that the server renders with, and what it accepts."""

    id: str
    trained: bool
    default: bool = False
    sizes: list[str] = Field(default_factory=list)
    min_side: int = 16
    max_pixels: int = 0
    fps: int = 25
    frames_per_clip: int = 80
    pose: bool = False
    defaults: dict[str, Any] = Field(default_factory=dict)
    presets: list[ModelPreset] = Field(default_factory=list)
    license: str = ""
    note: str = ""
    """A note that viewers of its videos should know; may be empty."""


class ModelList(Answer):
    """All checkpoints."""

    data: list[Model]


class SignedUrls(FileUrls):
    """Links that need no key until they expire."""

    expires_at: datetime
