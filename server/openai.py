"""Jobs in the shape of OpenAI's Videos API, for clients that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import Field

from contract.job import CancelReason, JobState
from contract.state import Job
from contract.video import FPS
from server.hints import Hints
from server.schemas import Wire
from server.views import job_view

STATUS: Final[Mapping[JobState, Literal["queued", "in_progress", "completed", "failed"]]] = {
    JobState.QUEUED: "queued",
    JobState.PROCESSING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELED: "failed",
}


class VideoError(Wire):
    code: str
    message: str


class Video(Wire):
    """A job as OpenAI's clients know it."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: str
    size: str
    seed: int
    error: VideoError | None
    remixed_from_video_id: str | None = Field(None, description="The job that it was made from.")


class VideoList(Wire):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(Wire):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class CreateVideo(Wire):
    """The body of a create, for the OpenAPI document."""

    prompt: str
    model: str | None = None
    size: str | None = None
    seconds: str | None = Field(None, description="At most this long; as long as the speech if not given.")
    seed: int | None = None
    input_reference: str | dict[str, str] = Field(
        description="The person: a file, a URL, or an object with one."
    )
    image_reference: str | dict[str, str] | None = Field(None, description="The product.")
    audio_reference: str | dict[str, str] | None = Field(
        None, description="The speech. Or speech_text in extra_params."
    )
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    negative_prompt: str | None = None
    extra_params: dict[str, Any] | None = Field(None, description="More fields of POST /v1/generate.")


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def video_of(job: Job, hints: Hints) -> Video:
    """The job in OpenAI's words."""
    params, error = job.submitted.params, None
    if job.error is not None:
        error = VideoError(code=job.error.code, message=job.error.message)
    elif job.state is JobState.CANCELED:
        late = job.cancel_reason is CancelReason.DEADLINE
        why = " because it was not over in time (cancel_after)" if late else ""
        error = VideoError(code="cancelled", message=f"The job was canceled{why}.")
    kept = timedelta(seconds=job.submitted.retention_s)
    return Video(
        id=job.id,
        model=job.submitted.checkpoint,
        status=STATUS[job.state],
        progress=int(job_view(job, hints).progress),
        created_at=int(job.submitted.at.timestamp()),
        completed_at=_unix(job.completed_at),
        expires_at=_unix(job.completed_at + kept if job.completed_at else None),
        prompt=params.prompts[0],
        seconds=f"{params.num_frames / FPS:g}",
        size=f"{params.width}x{params.height}",
        seed=params.seed,
        error=error,
        remixed_from_video_id=job.submitted.parent,
    )
