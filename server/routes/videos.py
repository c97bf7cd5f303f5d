"""The same jobs for clients of OpenAI's Videos API."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

from fastapi import Header, Query, Request, Response
from starlette.responses import JSONResponse

from contract.state import Job
from server.access import (
    DownloadableJob,
    Principal,
    ReadableJob,
    Reader,
    ServicesOf,
    Submitter,
    WritableJob,
    tenant_of,
)
from server.control import delete, finished, listed, wait_of
from server.delivery.files import file_response, finished_file
from server.delivery.spritesheet import spritesheet_response
from server.errors import ApiError
from server.idempotency import checked_key
from server.openai import Video, VideoDeleted, VideoList, video_of
from server.openapi import FILE_SCHEMA, REDO_BODY, VIDEO_BODY, Prefer, file_of
from server.routing import Router
from server.services import Services
from server.submit.derive import JobsFrom
from server.submit.openai import FIELD_OF_REFERENCE, receive_video
from server.submit.submit import submit

POLL_AFTER_MS: Final = "1000"
router = Router(prefix="/v1/videos", tags=["OpenAI-compatible"])


@router.post("", response_model=Video, openapi_extra=VIDEO_BODY, summary="Create a video")
async def create(
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: Annotated[str | None, Header()] = None,
    prefer: Prefer = None,
) -> Response:
    job = await _created(request, idempotency_key, services, principal)
    wait = wait_of(prefer, services.settings.max_wait_s)
    if wait is not None:
        job = await finished(job, wait, services, tenant_of(principal, request))
    answer = await asyncio.to_thread(_answer, job, services)  # it asks Redis, which may be slow to answer
    if wait is not None:
        answer.headers["Preference-Applied"] = f"wait={wait:g}"
    return answer


async def _created(request: Request, key: str | None, services: Services, principal: Principal) -> Job:
    """The job of a create. Errors name the fields of this API. Raises ApiError."""
    try:
        job, _ = await submit(request, checked_key(key), services, principal, receive_video)
    except ApiError as error:
        names = {field: reference for reference, field in FIELD_OF_REFERENCE.items()}
        error.field = names.get(error.field or "", error.field)
        raise
    return job


@router.post(
    "/sync",
    openapi_extra=VIDEO_BODY,
    summary="Create a video and wait for it",
    response_class=Response,
    responses={200: {"description": "The file.", "content": {"video/mp4": {"schema": FILE_SCHEMA}}}},
)
async def create_and_wait(
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """The MP4 itself, as soon as it is finished. If that takes longer than the server grants, 409
    `job_not_finished`, and `Location` names the video: ask there, or repeat with the same Idempotency-Key.
    """
    job = await _created(request, idempotency_key, services, principal)
    job = await finished(job, services.settings.max_wait_s, services, tenant_of(principal, request))
    try:
        answer = await asyncio.to_thread(
            file_response, services.store, finished_file(job, job.video, "video"), request
        )
    except ApiError as error:
        error.headers = {**(error.headers or {}), "Location": _path(job, services)}
        raise
    answer.headers["Location"] = _path(job, services)
    return answer


def _path(job: Job, services: Services) -> str:
    return f"{services.settings.base_url}/v1/videos/{job.id}"


def _answer(job: Job, services: Services) -> Response:
    headers = {} if job.state.is_terminal else {"openai-poll-after-ms": POLL_AFTER_MS}
    return JSONResponse(video_of(job, services.hints).model_dump(mode="json"), headers=headers)


@router.post("/{job_id}/remix", response_model=Video, openapi_extra=REDO_BODY, summary="Remix a video")
async def remix(
    job: WritableJob,
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Make the video again with another `prompt`. The seed stays, unless another is given."""
    made, _ = await JobsFrom(job, services, principal).redo(request, checked_key(idempotency_key), clip=0)
    return await asyncio.to_thread(_answer, made, services)


@router.get("", response_model=VideoList, summary="List videos")
def list_videos(
    services: ServicesOf,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    jobs, has_more = listed(services, principal, limit, after=after, oldest_first=order == "asc")
    return VideoList(
        data=[video_of(job, services.hints) for job in jobs],
        first_id=jobs[0].id if jobs else None,
        last_id=jobs[-1].id if jobs else None,
        has_more=has_more,
    )


@router.get("/{job_id}", response_model=Video, summary="Retrieve a video")
def retrieve(job: ReadableJob, services: ServicesOf) -> Response:
    return _answer(job, services)


@router.delete("/{job_id}", response_model=VideoDeleted, summary="Delete a video")
def delete_video(job: WritableJob, services: ServicesOf, principal: Submitter) -> VideoDeleted:
    delete(job, services, principal)
    return VideoDeleted(id=job.id)


@router.get(
    "/{job_id}/content",
    summary="Download a video",
    response_class=Response,
    responses=file_of("video/mp4", "image/jpeg"),
)
def content(
    job: DownloadableJob,
    services: ServicesOf,
    request: Request,
    variant: Annotated[
        Literal["video", "thumbnail", "spritesheet"],
        Query(description="A spritesheet has a picture of each clip, row by row."),
    ] = "video",
) -> Response:
    if variant == "spritesheet":
        return spritesheet_response(services.store, job, request)
    stored = job.video if variant == "video" else job.poster
    return file_response(services.store, finished_file(job, stored, variant), request)
