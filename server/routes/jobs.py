"""The native API: submit a job, watch it, get its video, cancel it, delete it."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Annotated

from fastapi import Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import AwareDatetime
from starlette.responses import StreamingResponse

from contract.job import JobState
from contract.speed import Work
from contract.state import Job
from contract.video import FPS
from jobs.scheduling import WaitingJob
from server.access import (
    DownloadableJob,
    ReadableJob,
    Reader,
    ServicesOf,
    SignedQuery,
    Submitter,
    Watcher,
    WritableJob,
    tenant_of,
)
from server.control import accepted, cancel, change, delete, listed
from server.delivery.events import event_stream
from server.delivery.files import clip_file, file_response, finished_file
from server.errors import ApiError
from server.idempotency import checked_key
from server.index import JobFilter
from server.job_log import JobLogView, job_log
from server.job_summary import label_of
from server.manifest import Manifest, manifest_of
from server.openapi import FINISHED_ALREADY, GENERATE_BODY, PROBLEM, VIDEO_FILE, IdempotencyKey, Prefer
from server.routing import Router
from server.schemas import (
    CheckpointView,
    Deleted,
    JobList,
    JobPatch,
    JobView,
    SignedUrls,
    SignRequest,
    ValidationView,
)
from server.services import Services
from server.submit.check import priority_of
from server.submit.submit import dry_run, submit
from server.views import estimates, file_urls, job_path, job_view, params_view

router = Router(prefix="/v1", tags=["jobs"], responses=PROBLEM)


@router.post(
    "/generate",
    status_code=202,
    response_model=JobView,
    openapi_extra=GENERATE_BODY,
    summary="Submit a job",
    responses=FINISHED_ALREADY,
)
async def generate(
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Store a job durably, and queue it. After the answer 202 it is not lost, whatever crashes."""
    key = checked_key(idempotency_key)
    job, created = await submit(request, key, services, principal)
    return await accepted(job, created, prefer, services, tenant_of(principal, request))


@router.post(
    "/validate", response_model=ValidationView, openapi_extra=GENERATE_BODY, summary="Check a submit"
)
async def validate(request: Request, services: ServicesOf, principal: Submitter) -> ValidationView:
    """Check all that a submit checks. Answers with resolved settings and an estimate; queues nothing."""
    draft, checked = await dry_run(request, services, principal)
    newcomer = WaitingJob(
        "new",
        principal.owner,
        priority_of(draft.fields.priority, principal),
        checked.params.cost(),
        work=Work.of(checked.params),
    )
    position, start, finish = await asyncio.to_thread(
        estimates, services.hints, checked.card.name, newcomer.id, newcomer.work, newcomer
    )
    return ValidationView(
        model=checked.card.name,
        checkpoint=CheckpointView(name=checked.card.name, trained=checked.card.trained),
        params=params_view(checked.params),
        exact=checked.params.preset.is_exact,
        duration_s=checked.params.num_frames / FPS,
        warnings=list(checked.warnings),
        queue_position=position,
        estimated_start_at=start,
        estimated_finish_at=finish,
    )


@router.get("/jobs", response_model=JobList, summary="List jobs")
def list_jobs(
    services: ServicesOf,
    principal: Reader,
    status: Annotated[
        list[JobState] | None, Query(description="Only jobs in this state; repeat it for several.")
    ] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only jobs of this checkpoint.")] = None,
    created_after: Annotated[
        AwareDatetime | None, Query(description="Only jobs submitted after this time (with its zone).")
    ] = None,
    created_before: Annotated[
        AwareDatetime | None, Query(description="Only jobs submitted before this time (with its zone).")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        Query(max_length=16, description="Only jobs with this metadata, as `key:value`; all that are given."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, description="Only jobs older than this one.")] = None,
) -> Response:
    """Your own jobs, newest first. An admin sees everybody's."""
    wanted = JobFilter(
        states=frozenset(status or ()),
        model=model,
        created_after=created_after,
        created_before=created_before,
        labels=frozenset(label_of(text) for text in metadata or ()),
    )
    jobs, has_more = listed(services, principal, limit, after, wanted=wanted)
    page = JobList(
        data=[],
        first_id=jobs[0].id if jobs else None,
        last_id=jobs[-1].id if jobs else None,
        has_more=has_more,
    )
    before, _, after_data = page.model_dump_json().encode().partition(b"[]")
    texts = b",".join([_text_of(job, services) for job in jobs])
    return Response(b"%b[%b]%b" % (before, texts, after_data), media_type="application/json")


def _text_of(job: Job, services: Services) -> bytes:
    """The job's view in JSON. A job that waits has another one with each look at the queue."""
    if job.state is JobState.PROCESSING:
        return _made_text(job, services)
    waits = not job.state.is_terminal
    basis = services.hints.snapshot(job.submitted.checkpoint) if waits else None
    return services.remembered.text(job, basis, lambda: _made_text(job, services))


def _made_text(job: Job, services: Services) -> bytes:
    return job_view(job, services.hints, services.settings.base_url).model_dump_json().encode()


@router.get("/jobs/{job_id}", response_model=JobView, summary="Look at a job")
def get_job(job: ReadableJob, services: ServicesOf) -> JobView:
    return job_view(job, services.hints, services.settings.base_url)


@router.get("/jobs/{job_id}/manifest", response_model=Manifest, summary="How the video was made")
def get_manifest(job: ReadableJob, services: ServicesOf) -> Manifest:
    """All that determines the video's bits, with hashes of inputs and outputs, as far as it is known now."""
    return manifest_of(job, services)


@router.get("/jobs/{job_id}/log", response_model=JobLogView, summary="What happened to a job")
def get_log(job: ReadableJob, services: ServicesOf) -> JobLogView:
    """The job's journal in words, and its workers' messages, stage by stage. It grows with each clip."""
    return job_log(job, services)


@router.patch("/jobs/{job_id}", response_model=JobView, summary="Change a job")
async def change_job(
    job: WritableJob, services: ServicesOf, principal: Submitter, patch: JobPatch
) -> JobView:
    """Set or remove metadata, at any time; change the priority of a job that waits."""
    job = await change(job, patch, services, principal)
    return await asyncio.to_thread(job_view, job, services.hints, services.settings.base_url)


@router.post("/jobs/{job_id}/cancel", response_model=JobView, summary="Cancel a job")
def cancel_job(job: WritableJob, services: ServicesOf, principal: Submitter) -> JobView:
    """Stop a job for good. Its finished clips stay.

    Canceling a canceled job is no error. Canceling a finished one is (409).
    """
    job = cancel(job, services, principal)
    if job.state is not JobState.CANCELED:
        raise ApiError("job_already_finished", f"Too late: the job {job.state.in_words}.")
    return job_view(job, services.hints, services.settings.base_url)


@router.delete("/jobs/{job_id}", response_model=Deleted, summary="Delete a job")
def delete_job(job: WritableJob, services: ServicesOf, principal: Submitter) -> Deleted:
    """Remove the job with all its files. It is canceled first if it is not over."""
    delete(job, services, principal)
    return Deleted(id=job.id)


@router.get("/jobs/{job_id}/video", summary="Get the video", response_class=Response, responses=VIDEO_FILE)
def get_video(job: DownloadableJob, services: ServicesOf, request: Request) -> Response:
    """The finished MP4. Takes one range, and all conditional headers."""
    return file_response(services.store, finished_file(job, job.video, "video"), request)


@router.get(
    "/jobs/{job_id}/clips/{clip}", summary="Get one clip", response_class=Response, responses=VIDEO_FILE
)
def get_clip(
    job: DownloadableJob,
    services: ServicesOf,
    request: Request,
    clip: Annotated[int, PathParameter(ge=0, le=100_000)],
) -> Response:
    """One clip, without sound, as soon as it is finished. Counted from 0."""
    return file_response(services.store, clip_file(job, clip), request)


@router.get(
    "/jobs/{job_id}/events", summary="Follow a job", response_class=StreamingResponse, responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}}
    },
)  # fmt: skip
async def get_events(
    job: DownloadableJob,
    services: ServicesOf,
    watcher: Watcher,
    request: Request,
    expires: SignedQuery = None,
    signature: SignedQuery = None,
    last_event_id: Annotated[str | None, Header(description="Number of the last event seen.")] = None,
) -> Response:
    """Events until the job is over. Their ids are numbers of the job's journal, so a client that sends
    Last-Event-ID misses nothing. A signed URL's stream ends when the URL expires.
    """
    after = -1
    if last_event_id is not None:
        if not re.fullmatch(r"[0-9]{1,9}", last_event_id):
            raise ApiError(
                "invalid_value", "Last-Event-ID must be the number of an event.", field="Last-Event-ID"
            )
        after = int(last_event_id)
        if job.state.is_terminal and after >= job.sequence:
            return Response(
                status_code=204
            )  # a browser's EventSource comes back for ever after anything else
    until = math.inf if signature is None or expires is None else float(expires)
    return event_stream(job, after, services, request, watcher, until)


@router.post("/jobs/{job_id}/signed-urls", response_model=SignedUrls, summary="Make links that need no key")
def sign_urls(job: ReadableJob, services: ServicesOf, body: SignRequest | None = None) -> SignedUrls:
    """Make short-lived links to the job's events, and to the files that it has so far."""
    expires = services.signer.in_seconds((body or SignRequest()).expires_in)

    def signed(path: str) -> str:
        return services.settings.base_url + services.signer.sign(path, expires)

    events = signed(f"{job_path(job.id)}/events")
    return SignedUrls(expires_at=expires, events=events, **dict(file_urls(job, signed)))
