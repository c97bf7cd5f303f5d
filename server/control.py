"""What clients do with stored jobs: list them, wait for one, change, cancel or delete it."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import replace
from typing import Final

from starlette.responses import JSONResponse, Response

from contract.entries import Canceled, JobChanges
from contract.job import JobState, utcnow
from contract.request import MOST_METADATA
from contract.state import Job
from jobs.journal import JobNotFound, Outdated, UnreadableJob
from server.access import Principal
from server.errors import ApiError
from server.index import JobFilter
from server.keys import ANONYMOUS_OWNER
from server.schemas import JobPatch
from server.services import Services
from server.shares import NoPlace
from server.submit.check import priority_of
from server.views import job_path, job_view

WAIT_POLL_S: Final = 0.2
CANCEL_TRIES: Final = 50
_WAIT: Final = re.compile(r"\s*wait\s*(?:=\s*\"?(?P<seconds>[0-9]{1,5})\"?\s*)?", re.IGNORECASE)


def listed(
    services: Services,
    principal: Principal,
    limit: int,
    after: str | None = None,
    oldest_first: bool = False,
    wanted: JobFilter | None = None,
) -> tuple[list[Job], bool]:
    """Up to `limit` of the principal's wanted jobs after the job `after`, and whether there are more.

    An admin sees everybody's jobs.
    """
    services.index.refresh()
    owner = None if principal.is_admin and principal.owner != ANONYMOUS_OWNER else principal.owner
    mine = replace(wanted or JobFilter(), owner=owner)
    ids = services.index.page(mine, after, limit + 1, oldest_first)
    jobs = []
    for job_id in ids[:limit]:
        try:
            jobs.append(services.remembered.read(job_id, services.index.sequence_of(job_id)))
        except JobNotFound:
            continue  # removed between listing and reading
        except (UnreadableJob, OSError) as error:
            services.store.passed_over.note("job", job_id, error)
    return jobs, len(ids) > limit


def wait_of(prefer: str | None, most: float) -> float | None:
    """The seconds that a Prefer header asks to wait, at most `most`. None if it asks for no waiting.

    `wait` without a number stands for `most`.
    """
    for preference in (prefer or "").split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0]):
            return most if match["seconds"] is None else min(float(match["seconds"]), most)
    return None


async def finished(job: Job, seconds: float, services: Services, tenant: str) -> Job:
    """Wait until the job is over, for up to `seconds`. Returns the job as it is then. Raises JobNotFound.

    Who waits takes one of the tenant's event streams. If there is none left, nobody waits: a client may
    prefer that, and must not rely on it.
    """
    until = time.monotonic() + seconds
    with suppress(NoPlace), services.streams.place(tenant):
        while not job.state.is_terminal and time.monotonic() < until and not services.stopping.is_set():
            await asyncio.sleep(WAIT_POLL_S)
            if await services.look(_has_news, job, services):
                job = await asyncio.to_thread(services.journal.read, job.id)
    return job


def _has_news(job: Job, services: Services) -> bool:
    """Whether the job has moved on, or is gone. Far cheaper than reading it."""
    journal = services.journal
    return journal.moved_on(job.id, job.sequence) or not journal.moved_on(job.id, -1)


async def accepted(job: Job, is_new: bool, prefer: str | None, services: Services, tenant: str) -> Response:
    """The answer to a request whose job is stored now. It waits as long as the Prefer header asks for."""
    wait = wait_of(prefer, services.settings.max_wait_s)
    if wait is not None:
        job = await finished(job, wait, services, tenant)
    view = await asyncio.to_thread(job_view, job, services.hints, services.settings.base_url)
    headers = {"Location": services.settings.base_url + job_path(job.id)}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait:g}"
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    status = 200 if job.state.is_terminal else 202
    return JSONResponse(view.model_dump(mode="json"), status_code=status, headers=headers)


def cancel(job: Job, services: Services, principal: Principal) -> Job:
    """Cancel the job unless it is over. Returns it in its final state.

    The journal decides a race. Raises ApiError if others keep winning it.
    """
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


async def change(job: Job, patch: JobPatch, services: Services, principal: Principal) -> Job:
    """Change what may be changed about a job. Raises ApiError."""
    async with services.storing.turn(job.id):  # a change is put together from the one before
        job = await asyncio.to_thread(services.journal.read, job.id)
        metadata = {**job.submitted.metadata, **(patch.metadata or {})}
        kept = {key: value for key, value in metadata.items() if value is not None}
        if len(kept) > MOST_METADATA:
            raise ApiError(
                "too_many",
                f"metadata may have at most {MOST_METADATA} keys; remove some.",
                field="metadata",
                limit=MOST_METADATA,
            )
        priority = job.submitted.priority
        if patch.priority is not None and patch.priority is not priority:
            if job.state is not JobState.QUEUED:
                detail = f"Too late for another priority: the job {job.state.in_words}."
                raise ApiError("job_not_queued", detail, field="priority")
            priority = priority_of(patch.priority, principal)
        changes = JobChanges(metadata=kept, priority=priority)
        job = await asyncio.to_thread(services.journal.change, job, changes)
    services.index.put(job)
    if patch.priority is not None and job.state is JobState.QUEUED:
        await asyncio.to_thread(services.hints.announce, job)
    return job


def delete(job: Job, services: Services, principal: Principal) -> None:
    """Cancel the job if it is not over, and remove it with all its files. Raises ApiError."""
    job = cancel(job, services, principal)
    services.webhooks.say_farewell(job)
    services.index.remove(job)
    services.journal.remove(job)
