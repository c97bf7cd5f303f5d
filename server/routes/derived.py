"""Routes that make jobs from other jobs: retry, extend, and redo from a clip on."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request, Response

from server.access import ServicesOf, Submitter, WritableJob, tenant_of
from server.control import accepted
from server.idempotency import checked_key
from server.openapi import EXTEND_BODY, FINISHED_ALREADY, PROBLEM, REDO_BODY, IdempotencyKey, Prefer
from server.routing import Router
from server.schemas import JobView
from server.submit.derive import JobsFrom

ClipToRedo = Annotated[int, Path(ge=0, le=100_000, description="The first clip to render, from 0.")]
router = Router(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEM)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobView,
    summary="Try again",
    responses=FINISHED_ALREADY,
)
async def retry(
    job: WritableJob,
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Make a new job of the same request. It keeps the finished clips of the old one."""
    key = checked_key(idempotency_key)
    made, is_new = await JobsFrom(job, services, principal).retry(request, key)
    return await accepted(made, is_new, prefer, services, tenant_of(principal, request))


@router.post(
    "/{job_id}/extend",
    status_code=202,
    response_model=JobView,
    openapi_extra=EXTEND_BODY,
    summary="Extend a video",
    responses=FINISHED_ALREADY,
)
async def extend(
    job: WritableJob,
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Make a new job that adds speech to a finished one.

    It goes on after the last complete clip. A clip that the end of the old speech cut short is rendered
    again.
    """
    key = checked_key(idempotency_key)
    made, is_new = await JobsFrom(job, services, principal).extend(request, key)
    return await accepted(made, is_new, prefer, services, tenant_of(principal, request))


@router.post(
    "/{job_id}/clips/{clip}/redo",
    status_code=202,
    response_model=JobView,
    openapi_extra=REDO_BODY,
    summary="Redo from a clip on",
    responses=FINISHED_ALREADY,
)
async def redo(
    job: WritableJob,
    request: Request,
    services: ServicesOf,
    principal: Submitter,
    clip: ClipToRedo,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Make a new job that keeps the clips before this one and renders this and all later ones again.

    The later ones must be rendered again because each clip continues the one before.
    """
    key = checked_key(idempotency_key)
    made, is_new = await JobsFrom(job, services, principal).redo(request, key, clip)
    return await accepted(made, is_new, prefer, services, tenant_of(principal, request))
