"""What goes over the wire: the submit request, the job, and the lists."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from contract.job import JobState, Priority, Stage
from contract.params import Fit, GenerationParams
from contract.warnings import JobWarning

LARGEST_SEED: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""


def _clean(text: str) -> str:
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\n\t\r"):
            raise PydanticCustomError("control_characters", "must not contain control characters")
    return text


def _clean_line(text: str) -> str:
    if any(character in "\n\t\r" for character in text):
        raise PydanticCustomError("control_characters", "must be a single line")
    return _clean(text)


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_clean)]
Line = Annotated[str, AfterValidator(_clean_line)]


class GenerateFields(BaseModel):
    """The settings of one video; whatever is left out gets the checkpoint's default. Strict: no type is
    guessed.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Annotated[list[Text], BeforeValidator(_one_or_many)] = Field(
        min_length=1,
        description="One prompt per clip of 3.2 seconds, in order; the last is used again as needed.",
    )
    model: Line | None = Field(None, max_length=64, description="Checkpoint to render with; see /v1/models.")
    negative_prompt: Text | None = Field(None, description="What the video should not show.")
    size: str | None = Field(
        None, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$", description='"WIDTHxHEIGHT", multiples of 16.'
    )
    width: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with height.")
    height: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with width.")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    flow_shift: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    product_scale: float = Field(
        1.0, ge=0.05, le=4, allow_inf_nan=False, description="Size of the product, 1 = as given."
    )
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Clip k uses seed + k. Random if not given."
    )
    num_clips: int | None = Field(
        None, ge=1, le=10_000, description="At most this many clips; all of the speech if not given."
    )
    fit: Fit | None = Field(None, strict=False, description="How the person photo is brought to the frame.")
    preset: Literal["exact", "parity"] = Field(
        "exact", description="parity repeats the official code, defects included."
    )
    audio_face_mask: bool = Field(False, description="Let the speech move the face only.")
    priority: Priority = Field(Priority.NORMAL, strict=False)
    retention_s: int | None = Field(
        None, ge=60, description="Seconds to keep the finished job, at most the server's own setting."
    )
    webhook_url: Line | None = Field(
        None, max_length=2048, description="https: URL that is told about the job's events."
    )
    metadata: dict[
        Annotated[Line, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]
    ] = Field(default_factory=dict, max_length=16, description="Strings of yours, given back with the job.")


class GenerateJson(GenerateFields):
    """A submit as JSON. Files are `data:` or `https:` URLs."""

    person_image: str = Field(description="Photo of the person: PNG, JPEG or WebP.")
    audio: str = Field(description="Speech: WAV, MP3, FLAC, OGG or M4A, mono or stereo.")
    product_image: str | None = Field(None, description="Photo of the product: PNG, JPEG or WebP.")
    pose_video: str | None = Field(None, description="Pose video: MP4 or WebM.")


FILE_FIELDS: Final = ("person_image", "audio", "product_image", "pose_video")
REQUIRED_FILES: Final = ("person_image", "audio")


class Wire(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointView(Wire):
    name: str
    trained: bool = Field(description="False: random weights, for trying the service out.")


class JobUrls(Wire):
    """Paths on this server. `video` and `clips` grow as files come into being."""

    self: str
    cancel: str
    events: str
    video: str | None
    clips: list[str]


class JobErrorView(Wire):
    code: str
    message: str
    stage: Stage


class Usage(Wire):
    gpu_seconds: float


class ParamsView(GenerationParams):
    """All settings as resolved."""

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
    expires_at: datetime | None = Field(description="When the job and its files are removed.")
    seed: int
    model: str
    checkpoint: CheckpointView
    params: ParamsView
    priority: Priority
    metadata: dict[str, str]
    attempts: int
    duration_s: float | None
    urls: JobUrls
    error: JobErrorView | None
    warnings: list[JobWarning] = Field(description="What is probably not as meant, or was changed.")
    usage: Usage


class JobList(Wire):
    """One page, newest first. Ask again with `after` = last_id while has_more."""

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ValidationView(Wire):
    """What a submit of the same request would become."""

    valid: Literal[True] = True
    model: str
    checkpoint: CheckpointView
    params: ParamsView
    duration_s: float
    warnings: list[JobWarning] = Field(description="What is probably not as meant, or was changed.")
    queue_position: int | None
    estimated_start_at: datetime | None
    estimated_finish_at: datetime | None


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
    license: str
    note: str = Field(description="What whoever sees its videos should know; may be empty.")


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelView]


class SignRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    expires_in: int = Field(900, ge=1, le=86_400, description="Seconds the URLs are good for.")


class SignedUrls(Wire):
    """URLs that need no key until they expire."""

    expires_at: datetime
    video: str | None
    clips: list[str]


class Deleted(Wire):
    id: str
    object: Literal["job.deleted"] = "job.deleted"
    deleted: Literal[True] = True


class Health(Wire):
    status: Literal["ok"] = "ok"


class Readiness(Wire):
    """Whether a submit now would be rendered soon, and what is missing if not."""

    ready: bool
    redis: bool
    storage: bool
    workers: int = Field(description="Alive, and not among the failing ones.")
    failing_workers: int = Field(description="Alive, but unable to load their model: see their logs.")


class ProblemDocument(BaseModel):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    limit: float | int | str | None = None
