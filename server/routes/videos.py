"""The same jobs in the shape of OpenAI's Videos API, for clients that speak it.

A video is a job: `input_reference` is the person, `image_reference` the product, `audio_reference` the voice.
Each is a file, a data: or https: URL, or an object with such a URL (as JSON or as bracket keys).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field
from starlette.responses import JSONResponse

from contract.job import JobState, StoredFile
from contract.state import Job
from contract.video import CLIP_FRAMES, FPS
from jobs.journal import JobNotFound, job_prefix
from server.access import DownloadableJob, ReadableJob, Reader, ServicesOf, Submitter, WritableJob
from server.delivery.files import file_response
from server.errors import ApiError
from server.idempotency import checked_key
from server.routes.jobs import cancel, submit
from server.schemas import Wire
from server.services import Services
from server.submit.fields import from_form, json_object
from server.submit.multipart import FormRules, ReceivedFile
from server.submit.receive import (
    Draft,
    Scratch,
    draft_of,
    file_limits,
    from_urls,
    receive_form,
    receive_json,
)
from server.views import job_view

FIELD_OF_REFERENCE: Final = {
    "input_reference": "person_image",
    "image_reference": "product_image",
    "audio_reference": "audio",
}
URL_KEYS: Final = ("url", "image_url", "audio_url", "data")
PLAIN_FIELDS: Final = (
    "prompt", "model", "size", "seed", "num_inference_steps", "guidance_scale", "flow_shift",
    "negative_prompt",
)  # fmt: skip
STATUS: Final[Mapping[JobState, Literal["queued", "in_progress", "completed", "failed"]]] = {
    JobState.QUEUED: "queued",
    JobState.PROCESSING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELED: "failed",
}
POLL_AFTER_MS: Final = "1000"
_KEY: Final = re.compile(r"(\w+)\[(\w+)\]")
_SECONDS: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")
router = APIRouter(prefix="/v1/videos", tags=["OpenAI-compatible"])


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
    remixed_from_video_id: None = None


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


class VideoRequest(Wire):
    """What a create takes, for the OpenAPI document."""

    prompt: str
    model: str | None = None
    size: str | None = None
    seconds: str | None = Field(None, description="At most this long; as long as the speech if not given.")
    seed: int | None = None
    input_reference: str | dict[str, str] = Field(
        description="The person: a file, a URL, or an object with one."
    )
    image_reference: str | dict[str, str] | None = Field(None, description="The product.")
    audio_reference: str | dict[str, str] = Field(description="The speech.")
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    negative_prompt: str | None = None
    extra_params: dict[str, Any] | None = Field(None, description="More fields of POST /v1/generate.")


_SCHEMA: Final = VideoRequest.model_json_schema()
BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": _SCHEMA} for kind in ("multipart/form-data", "application/json")},
    }
}


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def video_of(job: Job, services: Services) -> Video:
    """The job in OpenAI's words."""
    params, error = job.submitted.params, None
    if job.error is not None:
        error = VideoError(code=job.error.code, message=job.error.message)
    elif job.state is JobState.CANCELED:
        error = VideoError(code="cancelled", message="The job was canceled.")
    kept = timedelta(seconds=job.submitted.retention_s)
    return Video(
        id=job.id,
        model=job.submitted.checkpoint,
        status=STATUS[job.state],
        progress=int(job_view(job, services.hints).progress),
        created_at=int(job.submitted.at.timestamp()),
        completed_at=_unix(job.completed_at),
        expires_at=_unix(job.completed_at + kept if job.completed_at else None),
        prompt=params.prompts[0],
        seconds=f"{params.num_frames / FPS:g}",
        size=f"{params.width}x{params.height}",
        seed=params.seed,
        error=error,
    )


def _texts(given: Mapping[str, list[str]]) -> dict[str, Any]:
    """Form texts with objects put together from bracket keys and JSON."""
    values: dict[str, Any] = {}
    for name, texts in given.items():
        if match := _KEY.fullmatch(name):
            inner = values.setdefault(match[1], {})
            if not isinstance(inner, dict):
                raise ApiError("conflicting_fields", "Given as a whole and in parts.", field=match[1])
            inner[match[2]] = texts[0]
        elif name in values:
            raise ApiError("conflicting_fields", "Given as a whole and in parts.", field=name)
        elif name == "extra_params" or (texts[0].startswith("{") and name in FIELD_OF_REFERENCE):
            values[name] = json_object(texts[0], name)
        else:
            values[name] = texts[0]
    return values


def _url(reference: object, field: str) -> object:
    """The URL in a reference: itself, or under a known key, or once more nested."""
    for _ in range(2):
        if isinstance(reference, dict):
            found = [reference[key] for key in URL_KEYS if reference.get(key) is not None]
            if len(found) != 1:
                raise ApiError("invalid_value", f"Expected one of {', '.join(URL_KEYS)}.", field=field)
            reference = found[0]
    return reference


def _settings(values: dict[str, Any], typed: bool) -> dict[str, Any]:
    """Fields of POST /v1/generate out of those of a video."""
    extra = values.pop("extra_params", None) or {}
    if not isinstance(extra, dict):
        raise ApiError("invalid_value", "Expected an object.", field="extra_params")
    seconds = values.pop("seconds", None)
    for name in values:
        if name not in PLAIN_FIELDS:
            raise ApiError("unknown_field", "There is no such field.", field=name)
    if not typed:
        values = from_form({name: [text] for name, text in values.items() if isinstance(text, str)})
    settings = {**values, **extra}  # the longer list of prompts is in the extra ones
    if seconds is not None:
        if not _SECONDS.fullmatch(str(seconds)) or float(seconds) <= 0:
            raise ApiError("invalid_value", 'Expected seconds, such as "8".', field="seconds")
        settings.setdefault("num_clips", max(1, -(-round(float(seconds) * FPS) // CLIP_FRAMES)))
    return settings


async def receive_video(request: Request, services: Services, scratch: Scratch) -> Draft:
    """Take in a create, as multipart or JSON. Raises ApiError, ClientDisconnect."""
    files: dict[str, ReceivedFile] = {}
    typed = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    if typed:
        async with services.json_slots:
            values = await receive_json(request, services.settings)
    else:
        limits = file_limits(services)
        rules = FormRules(
            {reference: limits[field] for reference, field in FIELD_OF_REFERENCE.items()},
            frozenset({*PLAIN_FIELDS, *FIELD_OF_REFERENCE, "seconds", "extra_params"}),
            long_texts=frozenset(FIELD_OF_REFERENCE),
            long_text_bytes=services.settings.max_json_bytes,
            brackets=True,
        )
        form = await receive_form(request, scratch, rules, services.settings)
        values = _texts(form.texts)
        for reference, file in form.files.items():
            if reference in values:
                raise ApiError("conflicting_fields", "Given as a file and as text.", field=reference)
            files[FIELD_OF_REFERENCE[reference]] = file
    urls = {
        field: _url(values.pop(reference), reference)
        for reference, field in FIELD_OF_REFERENCE.items()
        if values.get(reference) is not None
    }
    files |= await from_urls(urls, services, scratch)
    return draft_of(
        _settings({name: value for name, value in values.items() if value is not None}, typed), files
    )


@router.post("", response_model=Video, openapi_extra=BODY, summary="Create a video")
async def create(
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    key = checked_key(idempotency_key)
    try:
        job, _ = await submit(request, key, services, principal, receive_video)
    except ApiError as error:
        names = {field: reference for reference, field in FIELD_OF_REFERENCE.items()}
        error.field = names.get(error.field or "", error.field)
        raise
    return await asyncio.to_thread(_answer, job, services)  # it asks Redis, which may be slow to answer


def _answer(job: Job, services: Services) -> Response:
    headers = {} if job.state.is_terminal else {"openai-poll-after-ms": POLL_AFTER_MS}
    return JSONResponse(video_of(job, services).model_dump(mode="json"), headers=headers)


@router.get("", response_model=VideoList, summary="List videos")
def list_videos(
    services: ServicesOf,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    services.index.refresh()
    owner = None if principal.is_admin and principal.owner != "local" else principal.owner
    ids = services.index.page(owner, None, after, limit + 1, oldest_first=order == "asc")
    videos = []
    for job_id in ids[:limit]:
        try:
            videos.append(video_of(services.journal.read(job_id), services))
        except JobNotFound:
            continue  # removed between listing and reading
    return VideoList(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=len(ids) > limit,
    )


@router.get("/{job_id}", response_model=Video, summary="Retrieve a video")
def retrieve(job: ReadableJob, services: ServicesOf) -> Response:
    return _answer(job, services)


@router.delete("/{job_id}", response_model=VideoDeleted, summary="Delete a video")
def delete(job: WritableJob, services: ServicesOf, principal: Submitter) -> VideoDeleted:
    services.forget(cancel(job, services, principal))
    return VideoDeleted(id=job.id)


@router.get("/{job_id}/content", summary="Download a video", response_class=Response, responses={
    200: {"description": "The file.", "content": {"video/mp4": {}, "image/jpeg": {}}},
})  # fmt: skip
def content(
    job: DownloadableJob,
    services: ServicesOf,
    request: Request,
    variant: Literal["video", "thumbnail"] = "video",
) -> Response:
    stored: StoredFile | None = job.video if variant == "video" else job.poster
    if stored is None or job.completed_at is None:
        if job.state.is_terminal:
            raise ApiError("no_result", f"There is no {variant} of this job.")
        raise ApiError("job_not_finished", "The video is not finished.", retry_after_s=2)
    try:
        path = services.store.local_path(f"{job_prefix(job.id)}/{stored.name}")
    except FileNotFoundError as error:
        raise JobNotFound(job.id) from error
    name = f"{job.id}{Path(stored.name).suffix}"
    return file_response(path, stored, job.completed_at, request.headers, request.method, name)
