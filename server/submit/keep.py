"""Receives a file that is kept to be submitted again, and decodes it once."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, get_args

from starlette.requests import Request

from contract.job import StoredFile, utcnow
from contract.settings import Settings
from jobs.kept_files import FileNotKept, KeptFile, KeptFiles, file_id
from server.access import Principal, tenant_of
from server.decoding.formats import ACCEPTED, Kind, sniff
from server.decoding.sandbox import DecodeTask
from server.errors import ApiError
from server.services import Services
from server.submit.multipart import FormRules, ReceivedFile
from server.submit.receive import INPUTS, Scratch, kind_limits, receive_form, scratch
from server.submit.submit import check_space, receiving

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
DECODED_NAME: Final[Mapping[Kind, tuple[str, str]]] = {
    "image": ("decoded.png", "image/png"),
    "audio": ("decoded.wav", "audio/wav"),
    "video": ("decoded.mp4", "video/mp4"),
}
_FILE: Final = "file"
_KIND: Final = "kind"


@dataclass(frozen=True)
class _Arrived:
    file: ReceivedFile
    kind: Kind


def _kind_of(file: ReceivedFile, asked: str | None) -> Kind:
    """The kind of a file: as asked for, or else image or audio by its first bytes."""
    for kind in KINDS:
        if asked == kind:
            return kind
    if asked is not None:
        raise ApiError(
            "invalid_value", "Expected image, audio or video.", field=_KIND, limit=", ".join(KINDS)
        )
    found = sniff(file.content)
    return "image" if found in ACCEPTED["image"] else "audio"


async def _receive(request: Request, space: Scratch, settings: Settings) -> _Arrived:
    limits = kind_limits(settings)
    rules = FormRules({_FILE: max(limits.values())}, frozenset({_KIND}))
    form = await receive_form(request, space, rules, settings)
    if _FILE not in form.files:
        raise ApiError("missing_field", "The request has no file in this field; send one.", field=_FILE)
    file = form.files[_FILE]
    kind = _kind_of(file, next(iter(form.texts.get(_KIND, [])), None))
    if file.size > limits[kind]:
        raise ApiError(
            "file_too_large",
            f"The file has more than {limits[kind]} bytes; send a smaller one.",
            field=_FILE,
            limit=limits[kind],
        )
    return _Arrived(file, kind)


def _check_quota(services: Services, principal: Principal, size: int) -> None:
    """Raises ApiError (429) if the owner would keep more files, or more bytes, than it may."""
    settings, owner = services.settings, principal.owner
    kept = KeptFiles(services.store).of(owner, utcnow())
    if len(kept) >= settings.max_files:
        detail = f"This key keeps the {settings.max_files} files that it may; delete some."
        raise ApiError("files_limit", detail, limit=settings.max_files, retry_after_s=60)
    bytes_kept = sum(file.decoded.size for file in kept) + size
    if bytes_kept > settings.max_files_bytes:
        detail = f"This key's files would take more than {settings.max_files_bytes} bytes; delete some."
        raise ApiError("files_limit", detail, limit=settings.max_files_bytes, retry_after_s=60)
    most = principal.limits.max_stored_bytes
    if most is not None and bytes_kept + services.index.stored_bytes(owner) > most:
        detail = f"This key's jobs and files would take more than {most} bytes; delete some."
        raise ApiError("stored_bytes_limit", detail, limit=most, retry_after_s=60)


async def keep(request: Request, services: Services, principal: Principal) -> tuple[KeptFile, bool]:
    """Receive, decode and keep a file. Also returns whether it is new. Raises ApiError, ClientDisconnect.

    The same content of the same kind is kept once. Sending it again keeps it longer.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        detail = "Send the file as multipart/form-data."
        raise ApiError("unsupported_content_type", detail, field="Content-Type", limit="multipart/form-data")
    tenant, owner, kept = tenant_of(principal, request), principal.owner, KeptFiles(services.store)
    async with receiving(request, services, tenant), scratch(services, tenant) as space:
        check_space(services)
        arrived = await _receive(request, space, services.settings)
        identity = file_id(owner, arrived.kind, arrived.file.sha256)
        expires_at = utcnow() + timedelta(seconds=services.settings.file_retention_s)
        with suppress(FileNotKept):
            known = await asyncio.to_thread(kept.get, owner, identity, utcnow())
            longer = known.model_copy(update={"expires_at": expires_at})
            await asyncio.to_thread(kept.keep_on, longer)
            return longer, False
        await space.on_disk(space.make_folder)
        name, media_type = DECODED_NAME[arrived.kind]
        target = space.folder / name
        task = DecodeTask(_FILE, arrived.kind, arrived.file.content, target)
        (decoded,) = await services.sandbox.decode([task], tenant)
        stored = await asyncio.to_thread(_stored, target, media_type)
        file = KeptFile(
            id=identity,
            owner=owner,
            kind=arrived.kind,
            received_sha256=arrived.file.sha256,
            received_bytes=arrived.file.size,
            decoded=stored,
            answer=decoded.as_answer(),
            created_at=utcnow(),
            expires_at=expires_at,
        )
        await space.on_disk(shutil.rmtree, space.folder / INPUTS)
        async with services.storing.turn(owner):  # else a burst would pass the quota together
            await asyncio.to_thread(_check_quota, services, principal, stored.size)
            return file, await asyncio.to_thread(kept.put, file, space.folder)


def _stored(path: Path, media_type: str) -> StoredFile:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return StoredFile(name=path.name, sha256=digest, size=path.stat().st_size, media_type=media_type)
