"""The API's JSON, apart from `contract.request`: a submit as JSON, jobs, lists and errors."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.attention import AttentionBackend
from contract.choices import Preset
from contract.job import CancelReason, JobState, Priority, Stage
from contract.memory import MemoryMode
from contract.params import GenerationParams
from contract.request import MOST_METADATA, GenerateFields, MetadataKey, MetadataValue
from contract.warnings import JobWarning


class GenerateJson(GenerateFields):
    """A submit as JSON. Files are `data:` or `https:` URLs, or ids of kept files."""

    person_image: str = Field(description="Photo of the person: JPEG, PNG, WebP, HEIC or AVIF.")
    audio: str | None = Field(
        None, description="Speech: WAV, MP3, FLAC, OGG, M4A, MP4, MOV, WebM, AAC or AIFF. Or speech_text."
    )
    product_image: str | None = Field(
        None, description="Photo of the product: JPEG, PNG, WebP, HEIC or AVIF."
    )
    pose_video: str | None = Field(None, description="Pose video: MP4 or WebM.")


class Wire(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SpeechView(Wire):
    """What the person says, if it was given as text."""

    text: str
    voice: str
    model: str = Field(description="Of the speech server.")


class CheckpointView(Wire):
    name: str
    trained: bool = Field(description="False: random weights, for trying the service out.")


class FileUrls(Wire):
    """The addresses of a job's files. `video`, `clips` and `posters` fill as the files are made."""

    video: str | None
    clips: list[str]
    posters: list[str] = Field(description="A still picture of each clip.")
    router_maps: list[str | None] = Field(description="Of each clip; null where none was kept.")
    thumbnail: str = Field(description="A picture at any time: the newest clip's, or the person's photo.")
    stream: str | None = Field(description="HLS playlist of the finished clips, from the first on.")
    preview: str | None = Field(description="MP4 of what is finished so far, with sound.")
    inputs: dict[str, str] = Field(description="What the job was submitted with, decoded, by field.")


class JobUrls(FileUrls):
    """Paths on this server."""

    self: str
    cancel: str
    events: str


class JobErrorView(Wire):
    code: str
    message: str
    stage: Stage


class Usage(Wire):
    gpu_seconds: float


class ParamsView(GenerationParams):
    """All settings, resolved."""

    size: str


class JobView(Wire):
    """A job as of now."""

    id: str
    object: Literal["job"] = "job"
    status: JobState
    progress: float = Field(ge=0, le=100)
    stage: Stage
    clip: int = Field(description="Clips finished or, while one is being made, its number counted from 0.")
    num_clips: int
    step: int
    num_steps: int
    queue_position: int | None = Field(description="1 = starts next. None if not waiting, or not known.")
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    cancel_at: datetime | None = Field(description="When the job is canceled if it is not over.")
    cancel_reason: CancelReason | None = Field(description="Why the job was canceled, if it was.")
    expires_at: datetime | None = Field(description="When the job and its files are removed.")
    seed: int
    model: str
    checkpoint: CheckpointView
    params: ParamsView
    exact: bool = Field(description="Whether the video is what the checkpoint's own sampling gives.")
    priority: Priority
    metadata: dict[str, str]
    parent: str | None = Field(description="The job that this one was made from. It may be gone.")
    attempts: int
    attention: AttentionBackend | None = Field(
        description="Kernel of the newest attempt's attention. Bits repeat on the same one only."
    )
    memory_mode: MemoryMode | None = Field(
        description="Set when a worker had too little device memory for this job and went on in this mode."
    )
    duration_s: float | None
    urls: JobUrls
    error: JobErrorView | None
    speech: SpeechView | None = Field(description="Set if speech_text was given instead of audio.")
    warnings: list[JobWarning] = Field(description="What is probably not as meant, or was changed.")
    usage: Usage


class JobList(Wire):
    """One page of jobs. Ask again with `after` = last_id while has_more is true."""

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ValidationView(Wire):
    """The settings and the estimate that a submit of the same request would have."""

    valid: Literal[True] = True
    model: str
    checkpoint: CheckpointView
    params: ParamsView
    exact: bool = Field(description="Whether the video is what the checkpoint's own sampling gives.")
    duration_s: float
    warnings: list[JobWarning] = Field(description="What is probably not as meant, or was changed.")
    queue_position: int | None
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None


class PresetView(Wire):
    """A preset that a checkpoint offers, at its default settings."""

    id: Preset
    exact: bool
    num_inference_steps: int
    num_computed_steps: int = Field(description="Steps in which the network runs: the time a video takes.")
    psnr_db: float | None = Field(description="Against the exact video, as measured on this checkpoint.")


class ModelView(Wire):
    id: str
    object: Literal["model"] = "model"
    trained: bool
    default: bool
    sizes: list[str]
    min_side: int
    max_pixels: int
    fps: int
    frames_per_clip: int
    pose: bool
    defaults: dict[str, Any]
    presets: list[PresetView]
    license: str
    note: str = Field(description="What whoever sees its videos should know; may be empty.")


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelView]
    voices: list[str] = Field(
        description="Voices for speech_text, the default first; empty if the server makes no speech."
    )


class FileLimits(Wire):
    """The limits of a file: bytes, pixels (width × height), shortest side in pixels, seconds of sound."""

    request_bytes: int = Field(description="Of one whole request, all files together.")
    image_bytes: int
    image_pixels: int
    image_min_side: int
    audio_bytes: int
    audio_seconds: float
    audio_min_seconds: float
    video_bytes: int


class KeyView(Wire):
    """The API key that asks."""

    id: str
    scopes: list[str]
    highest_priority: Priority
    limits: dict[str, Any] = Field(description="As `cointeract keys create` set them; null: no limit.")


class LimitsView(Wire):
    """The limits that a submit is checked against."""

    files: FileLimits
    max_prompts: int
    max_prompt_chars: int
    max_speech_chars: int
    max_clips: int
    max_steps: int
    max_dropped_frames: int = Field(description="A last clip with no more frames is dropped.")
    fields: dict[str, Any] = Field(description="JSON Schema of each field of a submit that is no file.")
    key: KeyView | None = Field(description="Null on a server without keys.")


class JobPatch(BaseModel):
    """The fields of a job that may be changed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metadata: dict[MetadataKey, MetadataValue | None] | None = Field(
        None, max_length=2 * MOST_METADATA, description="Keys to set; null removes one. Others stay."
    )
    priority: Priority | None = Field(
        None, strict=False, description="While the job waits, as far as the key allows."
    )


class ExampleView(Wire):
    """Inputs to try the service with."""

    title: str
    prompts: list[str]
    person_image: str = Field(description="Where the file is, as are the next two.")
    product_image: str
    audio: str


class ExampleList(Wire):
    object: Literal["list"] = "list"
    data: list[ExampleView]


class SignRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    expires_in: int = Field(900, ge=1, le=86_400, description="Seconds the URLs are good for.")


class SignedUrls(FileUrls):
    """URLs that work without a key until they expire."""

    expires_at: datetime
    events: str = Field(description="Server-sent events, which end when the URL expires.")


class Deleted(Wire):
    id: str
    object: Literal["job.deleted"] = "job.deleted"
    deleted: Literal[True] = True


class Health(Wire):
    status: Literal["ok"] = "ok"


class Readiness(Wire):
    """Whether a job submitted now would be rendered soon, and what is missing if not."""

    ready: bool
    redis: bool
    storage: bool
    workers: int = Field(description="Alive, and not among the failing ones.")
    failing_workers: int = Field(description="Alive, but unable to work.")
    problems: list[str] = Field(
        description="What keeps workers and other parts from working, in words. Empty for others than admins "
        "once there are API keys."
    )


class ProblemDocument(BaseModel):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    limit: float | int | str | None = None
