"""The native API: submit a job, watch it, get its video, stop it, forget it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from starlette.responses import JSONResponse, StreamingResponse

from contract.entries import Canceled
from contract.job import JobState, utcnow
from contract.state import Job
from jobs.journal import JobNotFound, Outdated, job_prefix
from jobs.scheduling import WaitingJob
from server.access import (
    DownloadableJob,
    Principal,
    ReadableJob,
    Reader,
    ServicesOf,
    Submitter,
    WritableJob,
)
from server.delivery.events import job_events
from server.delivery.files import file_response
from server.errors import PROBLEM_MEDIA_TYPE, ApiError
from server.idempotency import checked_key
from server.schemas import (
    FILE_FIELDS,
    CheckpointView,
    Deleted,
    GenerateFields,
    GenerateJson,
    JobList,
    JobView,
    Problem,
    SignedUrls,
    SignRequest,
    ValidationView,
)
from server.services import Services
from server.submit.check import check
from server.submit.receive import Draft, Scratch, drain, receive, scratch
from server.submit.save import known_job, save
from server.views import clip_path, estimates, job_path, job_view, params_view

PROBLEM: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem document (RFC 9457); `code` is stable, see docs/errors.md.",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
}
VIDEO: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file.", "content": {"video/mp4": {}}},
    206: {"description": "The part that was asked for.", "content": {"video/mp4": {}}},
    304: {"description": "Not changed."},
}
WAIT_POLL_S: Final = 0.2
CANCEL_TRIES: Final = 50
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?([0-9]{1,5})\"?\s*")
router = APIRouter(prefix="/v1", tags=["jobs"], responses=PROBLEM)


def _body_schema() -> dict[str, Any]:
    """The request body of a submit for OpenAPI: it is streamed by hand, so FastAPI cannot tell."""
    form = GenerateFields.model_json_schema()
    files = {name: {"type": "string", "format": "binary"} for name in FILE_FIELDS}
    form["properties"] = {**form["properties"], **files}
    form["properties"]["prompt"] = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "minLength": 1},
    }
    form["required"] = ["prompt", "person_image", "audio"]
    as_json = GenerateJson.model_json_schema()
    for schema in (form, as_json):
        for name, definition in schema.pop("$defs", {}).items():
            _inline(schema, f"#/$defs/{name}", definition)
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": as_json}},
    }


def _inline(schema: Any, reference: str, definition: dict[str, Any]) -> None:
    """Replace each reference to a definition by the definition itself."""
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for child in list(children):
        _inline(child, reference, definition)
    if isinstance(schema, dict) and schema.get("$ref") == reference:
        del schema["$ref"]
        schema.update({key: value for key, value in definition.items() if key not in schema})


BODY: Final = {"requestBody": _body_schema()}


@asynccontextmanager
async def _receiving(request: Request, services: Services) -> AsyncIterator[None]:
    """One submit being received: a place among `max_concurrent_uploads`; what is refused is drained, then
    closed.
    """
    limit = services.settings.max_concurrent_uploads
    try:
        if services.uploads >= limit:
            raise ApiError("queue_full", "Too many uploads at once.", limit=limit, retry_after_s=1)
        services.uploads += 1
        try:
            yield
        finally:
            services.uploads -= 1
    except ApiError as error:
        error.close = not await drain(request)
        raise


def _check_space(services: Services) -> None:
    settings = services.settings
    if services.store.free_bytes() < settings.min_free_bytes + settings.max_upload_bytes:
        raise ApiError(
            "insufficient_storage", "The server is short of disk space.", limit=settings.min_free_bytes
        )


def _wait_seconds(prefer: str | None, services: Services) -> float:
    for preference in (prefer or "").split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0]):
            return min(float(match[1]), services.settings.max_wait_s)
    return 0.0


async def _finished(job: Job, seconds: float, services: Services) -> Job:
    """The job once it is over, or as it is after `seconds`."""
    until = time.monotonic() + seconds
    while not job.state.is_terminal and time.monotonic() < until and not services.stopping.is_set():
        await asyncio.sleep(WAIT_POLL_S)
        job = await asyncio.to_thread(services.journal.read, job.id)
    return job


@router.post(
    "/generate",
    status_code=202,
    response_model=JobView,
    openapi_extra=BODY,
    summary="Submit a job",
    responses={200: {"model": JobView, "description": "Finished already."}},
)
async def generate(
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: Annotated[
        str | None, Header(description="Makes repeating the request safe for 48 h.")
    ] = None,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: hold the answer up to N s for a finished job.")
    ] = None,
) -> Response:
    """Store a job durably and queue it. Once answered with 202 it is not lost, whatever crashes."""
    key = checked_key(idempotency_key)
    job, created = await submit(request, key, services, principal)
    wait = _wait_seconds(prefer, services)
    if wait:
        job = await _finished(job, wait, services)
    view = await asyncio.to_thread(job_view, job, services.hints)
    headers = {"Location": job_path(job.id)}
    if wait:
        headers["Preference-Applied"] = f"wait={wait:g}"
    if not created:
        headers["Idempotency-Replayed"] = "true"
    status = 200 if job.state.is_terminal else 202
    return JSONResponse(view.model_dump(mode="json"), status_code=status, headers=headers)


Receiver = Callable[[Request, Services, Scratch], Awaitable[Draft]]


async def submit(
    request: Request, key: str | None, services: Services, principal: Principal, receiver: Receiver = receive
) -> tuple[Job, bool]:
    """Take in, check and store a job, or find the one of an earlier try. Also says whether it is new."""
    repeated = key is not None and services.idempotency.known(principal.owner, key)
    # A repetition of a stored request takes no place, so no limit may refuse it.
    admission = nullcontext() if repeated else services.index.admission(principal.owner, principal.limits)
    async with _receiving(request, services):
        with admission:
            if not repeated:
                _check_space(services)
            async with scratch(services) as space:
                draft = await receiver(request, services, space)
                turn = nullcontext() if key is None else services.idempotency.turn(principal.owner, key)
                async with turn:
                    if key is not None and services.idempotency.known(principal.owner, key):
                        known = await asyncio.to_thread(known_job, key, draft, services, principal)
                        if known is not None:
                            return known, False
                    checked = await check(draft, services, principal, space.folder)
                    return await save(draft, checked, key, services, principal)


@router.post("/validate", response_model=ValidationView, openapi_extra=BODY, summary="Check a submit")
async def validate(request: Request, services: ServicesOf, principal: Submitter) -> ValidationView:
    """Everything a submit checks, and what would come of it, without queueing anything."""
    async with _receiving(request, services), scratch(services) as space:
        _check_space(services)
        draft = await receive(request, services, space)
        checked = await check(draft, services, principal, space.folder)
    newcomer = WaitingJob("new", principal.owner, draft.fields.priority, checked.cost)
    position, start, finish = await asyncio.to_thread(
        estimates, services.hints, checked.card.name, newcomer.id, newcomer
    )
    return ValidationView(
        model=checked.card.name,
        checkpoint=CheckpointView(name=checked.card.name, trained=checked.card.trained),
        params=params_view(checked.params),
        duration_s=checked.seconds,
        warnings=list(checked.warnings),
        queue_position=position,
        estimated_start_at=start,
        estimated_finish_at=finish,
    )


@router.get("/jobs", response_model=JobList, summary="List jobs")
def list_jobs(
    services: ServicesOf,
    principal: Reader,
    status: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, description="Only jobs older than this one.")] = None,
) -> JobList:
    """Own jobs, newest first; an admin sees everybody's."""
    services.index.refresh()
    owner = None if principal.is_admin and principal.owner != "local" else principal.owner
    ids = services.index.page(owner, status, after, limit + 1)
    views = []
    for job_id in ids[:limit]:
        try:
            views.append(job_view(services.journal.read(job_id), services.hints))
        except JobNotFound:
            continue  # removed between listing and reading
    return JobList(
        data=views,
        first_id=views[0].id if views else None,
        last_id=views[-1].id if views else None,
        has_more=len(ids) > limit,
    )


@router.get("/jobs/{job_id}", response_model=JobView, summary="Look at a job")
def get_job(job: ReadableJob, services: ServicesOf) -> JobView:
    return job_view(job, services.hints)


@router.post("/jobs/{job_id}/cancel", response_model=JobView, summary="Cancel a job")
def cancel_job(job: WritableJob, services: ServicesOf, principal: Submitter) -> JobView:
    """Stop a job for good. Its finished clips stay. Canceling a canceled job is no error; a finished one is
    (409).
    """
    job = cancel(job, services, principal)
    if job.state is not JobState.CANCELED:
        raise ApiError("job_already_finished", f"The job has {job.state.value} already.")
    return job_view(job, services.hints)


def cancel(job: Job, services: Services, principal: Principal) -> Job:
    """The job in a final state. The journal decides races: whoever writes the next entry first."""
    for _ in range(CANCEL_TRIES):
        if job.state.is_terminal:
            break
        try:
            job = services.journal.append(job, Canceled(at=utcnow(), by=principal.owner))
        except Outdated:
            job = services.journal.read(job.id)
            continue
        services.hints.withdraw(job)
        services.index.put(job)
    if not job.state.is_terminal:
        raise ApiError("busy", "The job is changing too fast; try again.", retry_after_s=1)
    return job


@router.delete("/jobs/{job_id}", response_model=Deleted, summary="Delete a job")
def delete_job(job: WritableJob, services: ServicesOf, principal: Submitter) -> Deleted:
    """Cancel the job if need be, and remove it with all its files."""
    job = cancel(job, services, principal)
    services.forget(job)
    return Deleted(id=job.id)


def _file(services: Services, job: Job, name: str) -> Path:
    try:
        return services.store.local_path(f"{job_prefix(job.id)}/{name}")
    except FileNotFoundError as error:
        raise JobNotFound(job.id) from error  # expired or deleted a moment ago


@router.head("/jobs/{job_id}/video", include_in_schema=False, response_class=Response)
@router.get("/jobs/{job_id}/video", summary="Get the video", response_class=Response, responses=VIDEO)
def get_video(job: DownloadableJob, services: ServicesOf, request: Request) -> Response:
    """The finished MP4. Serves ranges, and conditional requests by ETag."""
    if job.video is None or job.completed_at is None:
        if job.state.is_terminal:
            raise ApiError("no_result", f"The job has {job.state.value}: there is no video.")
        raise ApiError("job_not_finished", "The job is not finished.", retry_after_s=2)
    path = _file(services, job, job.video.name)
    return file_response(path, job.video, job.completed_at, request.headers, request.method, f"{job.id}.mp4")


@router.head("/jobs/{job_id}/clips/{clip}", include_in_schema=False, response_class=Response)
@router.get("/jobs/{job_id}/clips/{clip}", summary="Get one clip", response_class=Response, responses=VIDEO)
def get_clip(
    job: DownloadableJob,
    services: ServicesOf,
    request: Request,
    clip: Annotated[int, PathParameter(ge=0, le=100_000)],
) -> Response:
    """One clip, without sound, as soon as it is finished. Counted from 0."""
    finished = next((entry for entry in job.clips if entry.clip == clip), None)
    if finished is None:
        if clip < job.submitted.params.num_clips and not job.state.is_terminal:
            raise ApiError("job_not_finished", "The clip is not finished.", retry_after_s=2)
        raise ApiError("not_found", "The job has no such clip.")
    path = _file(services, job, finished.video.name)
    return file_response(
        path, finished.video, finished.at, request.headers, request.method, f"{job.id}-{clip}.mp4"
    )


@router.get(
    "/jobs/{job_id}/events", summary="Follow a job", response_class=StreamingResponse, responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}}
    },
)  # fmt: skip
async def get_events(
    job: ReadableJob,
    services: ServicesOf,
    request: Request,
    last_event_id: Annotated[str | None, Header(description="Number of the last event seen.")] = None,
) -> Response:
    """Events until the job is over. Ids are numbers of the job's journal; with Last-Event-ID nothing is
    missed.
    """
    after = -1
    if last_event_id is not None:
        if not re.fullmatch(r"[0-9]{1,9}", last_event_id):
            raise ApiError("invalid_value", "Expected the number of an event.", field="Last-Event-ID")
        after = int(last_event_id)
    limit = services.settings.max_event_streams
    if services.streams >= limit:
        raise ApiError("too_many_streams", "Too many event streams are open.", limit=limit)

    async def counted() -> AsyncIterator[bytes]:
        services.streams += 1
        try:
            async for event in job_events(job, after, services, request):
                yield event
        finally:
            services.streams -= 1

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(counted(), media_type="text/event-stream", headers=headers)


@router.post("/jobs/{job_id}/signed-urls", response_model=SignedUrls, summary="Make links that need no key")
def sign_urls(job: ReadableJob, services: ServicesOf, body: SignRequest | None = None) -> SignedUrls:
    """Short-lived links to the files that the job has so far."""
    expires = services.signer.in_seconds((body or SignRequest()).expires_in)
    return SignedUrls(
        expires_at=expires,
        video=services.signer.sign(f"{job_path(job.id)}/video", expires) if job.video is not None else None,
        clips=[services.signer.sign(clip_path(job.id, entry.clip), expires) for entry in job.clips],
    )
