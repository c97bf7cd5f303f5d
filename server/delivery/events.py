"""Server-sent events of a job: its journal, entry by entry, and the progress in between.

The id of an event is the number of its entry. A client that lost the connection sends that number as
Last-Event-ID and misses nothing, because the journal keeps all entries.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contract.entries import JournalEntry
from contract.state import Job
from jobs.journal import JobNotFound, submitted_job
from server.access import Principal, tenant_of
from server.errors import ApiError
from server.keys import is_revoked
from server.services import Services
from server.shares import NoPlace
from server.views import job_view

EVENT_STREAM: Final = "text/event-stream"
EVENTS_POLL_S: Final = 0.25
PROGRESS_EVERY: Final = 4
KEEP_ALIVE_EVERY: Final = 20
EVENT_OF_ENTRY: Final = {
    "submitted": "job.submitted",
    "started": "job.started",
    "clip_finished": "job.clip_finished",
    "interrupted": "job.interrupted",
    "succeeded": "job.succeeded",
    "failed": "job.failed",
    "canceled": "job.canceled",
}


def _event(name: str, data: str, sequence: int | None = None) -> bytes:
    identifier = "" if sequence is None else f"id: {sequence}\n"
    return f"{identifier}event: {name}\ndata: {data}\n\n".encode()


def event_stream(
    job: Job, after: int, services: Services, request: Request, principal: Principal, until: float
) -> Response:
    """The answer that carries `job_events`, up to the time `until`. Raises ApiError if the tenant has its
    share of streams open.
    """
    tenant = tenant_of(principal, request)
    try:
        with services.streams.place(tenant):
            pass
    except NoPlace as error:
        limit = services.settings.max_event_streams
        raise ApiError("too_many_streams", "Too many event streams are open.", limit=limit) from error

    async def counted() -> AsyncIterator[bytes]:
        with services.streams.place(tenant):
            async for event in job_events(job, after, services, principal.owner, until):
                yield event

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=EVENT_STREAM)
    return StreamingResponse(counted(), media_type=EVENT_STREAM, headers=headers)


async def job_events(
    job: Job, after: int, services: Services, owner: str, until: float
) -> AsyncIterator[bytes]:
    """The events with a number above `after`, until the job is over, the key of `owner` is revoked, or the
    time `until` has come. Each carries the job as it was then.
    """
    state = submitted_job(job.id, job.submitted)
    if after < 0:
        yield _event(EVENT_OF_ENTRY["submitted"], await _view(state, services), 0)
    last_progress, rounds = "", 0
    while not services.stopping.is_set() and time.time() < until:
        if await services.look(services.journal.moved_on, job.id, state.sequence):
            news = await asyncio.to_thread(_news, services, state)
            for entry, state in news:
                if state.sequence > after:
                    yield _event(EVENT_OF_ENTRY[entry.type], await _view(state, services), state.sequence)
        if state.state.is_terminal:
            return
        if rounds % PROGRESS_EVERY == 0:
            try:
                progress = await asyncio.to_thread(_progress, state, services, owner)
            except JobNotFound:
                yield _event("job.deleted", json.dumps({"id": job.id}))
                return
            if progress is None:
                return
            if progress != last_progress:
                last_progress = progress
                yield _event("job.progress", progress)
        rounds += 1
        if rounds % KEEP_ALIVE_EVERY == 0:
            yield b": still here\n\n"
        with suppress(TimeoutError):
            await asyncio.wait_for(services.stopping.wait(), EVENTS_POLL_S)


def _news(services: Services, job: Job) -> list[tuple[JournalEntry, Job]]:
    return list(services.journal.follow(job))


def _progress(job: Job, services: Services, owner: str) -> str | None:
    """The job as of now; None if the key of `owner` is revoked. Raises JobNotFound."""
    if is_revoked(services.store, owner):
        return None
    if not services.journal.moved_on(job.id, -1):
        raise JobNotFound(job.id)
    return job_view(job, services.hints, services.settings.base_url).model_dump_json()


async def _view(job: Job, services: Services) -> str:
    view = await asyncio.to_thread(job_view, job, services.hints, services.settings.base_url)
    return view.model_dump_json()
