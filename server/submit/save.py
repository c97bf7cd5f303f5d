"""Stores a checked submit as a job: durably, and once for each Idempotency-Key."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from contract.entries import SpokenText, Submitted
from contract.job import InputFiles, StoredFile, new_job_id, utcnow
from contract.request import FILE_FIELDS
from contract.state import Job
from jobs.journal import JobNotFound
from server.access import Principal
from server.errors import ApiError
from server.services import Services
from server.submit.check import STORED_NAME, THUMBNAIL, Checked, priority_of
from server.submit.receive import Draft
from server.submit.speak import voice_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewJob:
    """A job that can be stored: a folder with all its files, and its first entry."""

    folder: Path
    submitted: Submitted


MakeJob = Callable[[], NewJob]
"""Makes the job that a checked request asks for. It reads and writes files: call it in a thread."""


def stored_file(folder: Path, name: str, media_type: str) -> StoredFile | None:
    """The journal's facts about a file in a job's folder; None if there is no such file."""
    path = folder / name
    if not path.exists():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(name=name, sha256=digest, size=path.stat().st_size, media_type=media_type)


def _speech(draft: Draft, services: Services) -> SpokenText | None:
    """The text that was spoken instead of sent as audio."""
    settings, text = services.settings, draft.fields.speech_text
    voice = voice_of(draft.fields, settings)
    if text is None or voice is None:
        return None
    return SpokenText(text=text, voice=voice, model=settings.speech_model)


def new_job(draft: Draft, checked: Checked, services: Services, principal: Principal) -> NewJob:
    """The job that a checked submit asks for."""
    (checked.folder / THUMBNAIL[0]).write_bytes(checked.thumbnail)
    events = draft.fields.webhook_events
    files = {field: stored_file(checked.folder, *STORED_NAME[field]) for field in FILE_FIELDS}
    submitted = Submitted(
        at=utcnow(),
        owner=principal.owner,
        checkpoint=checked.card.name,
        trained=checked.card.trained,
        params=checked.params,
        inputs=InputFiles.model_validate(files),
        thumbnail=stored_file(checked.folder, *THUMBNAIL),
        priority=priority_of(draft.fields.priority, principal),
        metadata=draft.fields.metadata,
        webhook_url=draft.fields.webhook_url,
        webhook_events=events and tuple(events),
        retention_s=draft.fields.retention_s or services.settings.retention_s,
        cancel_after_s=draft.fields.cancel_after,
        speech=_speech(draft, services),
        consent=draft.fields.consent,
        received=draft.received(),
        cost=checked.params.cost(),
        warnings=checked.warnings,
        max_running=principal.limits.max_running,
        keep_motion=services.settings.keep_motion,
    )
    return NewJob(checked.folder, submitted)


def _save(job_id: str, make: MakeJob, services: Services, claim: str | None = None) -> Job:
    """Store the job, and announce it."""
    new = make()
    context = {"idempotency_claim": claim, "trace": services.traces.current()}
    submitted = new.submitted.model_copy(update=context)
    job = services.journal.submit(job_id, new.folder, submitted)
    services.index.put(job)
    services.hints.announce(job)
    log.info("submitted", extra={"job_id": job.id, "checkpoint": submitted.checkpoint})
    return job


def _save_once(key: str, request: str, make: MakeJob, services: Services, owner: str) -> tuple[Job, bool]:
    """Store the job under the id that its idempotency key has claimed, or read the one that is stored there.

    Also returns whether the job is new.
    """
    keys = services.idempotency
    job_id = keys.claim(owner, key, request, new_job_id())
    try:
        job, created = services.journal.read(job_id), False
    except JobNotFound as error:
        if keys.is_gone(owner, key):
            detail = "The job of this Idempotency-Key was deleted or has expired."
            raise ApiError("idempotent_job_gone", detail, field="Idempotency-Key") from error
        try:
            job, created = _save(job_id, make, services, keys.claim_key(owner, key)), True
        except FileExistsError:
            job, created = services.journal.read(job_id), False
    return job, created


async def save(
    make: MakeJob, key: str | None, request: str, services: Services, principal: Principal
) -> tuple[Job, bool]:
    """Store the job durably, and announce it. Also returns whether it is new, or known by its key.

    `request` is the fingerprint of the request.
    """
    owner, limits = principal.owner, principal.limits
    # A burst has passed the limits together, before its jobs were known. So one is stored after the other.
    async with services.storing.turn(owner) if limits.are_reserved else nullcontext():
        services.index.check_reserves(owner, limits)
        async with services.disk.turn(owner):
            if key is None:
                return await asyncio.to_thread(_save, new_job_id(), make, services), True
            return await asyncio.to_thread(_save_once, key, request, make, services, owner)


def known_job(key: str, request: str, services: Services, owner: str) -> Job | None:
    """The job that this very request has made before, or None.

    Raises ApiError if the key was used for another request.
    """
    if not services.idempotency.known(owner, key):
        return None
    job_id = services.idempotency.claim(owner, key, request, new_job_id())
    try:
        return services.journal.read(job_id)
    except JobNotFound:
        return None
