"""Kept files in a submit: finds them by their ids, and links them into the job instead of decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contract.job import utcnow
from jobs.kept_files import FileNotKept, KeptFile, KeptFiles
from server.access import Principal
from server.decoding.decoded import DecodedFile
from server.decoding.formats import KIND_OF_FIELD
from server.errors import ApiError
from server.services import Services
from server.submit.receive import Draft


def with_kept(draft: Draft, services: Services, principal: Principal) -> Draft:
    """The draft with the kept files that it names. Raises ApiError, OSError."""
    owner, named = principal.owner, draft.references.items()
    return replace(draft, kept={field: kept_file(field, file, services, owner) for field, file in named})


def kept_file(field: str, file: str, services: Services, owner: str) -> KeptFile:
    """The kept file with that id, which a field names. Raises ApiError, OSError."""
    try:
        found = KeptFiles(services.store).get(owner, file, utcnow())
    except FileNotKept as error:
        detail = "You keep no file with this id: it was deleted, has expired, or never was."
        raise ApiError("unknown_file", detail, field=field) from error
    expected = KIND_OF_FIELD[field]
    if found.kind != expected:
        detail = f"The file was sent as {found.kind}; send it again with kind={expected}."
        raise ApiError("unknown_file", detail, field=field, limit=expected)
    return found


def link(file: KeptFile, field: str, target: Path, services: Services) -> DecodedFile:
    """Link a kept file to the path where a decoder would have written it. Raises ApiError, OSError."""
    try:
        services.store.fetch(file.key, target)
    except FileNotFoundError as error:
        raise ApiError("unknown_file", "The file has just been deleted.", field=field) from error
    return DecodedFile.of(file.answer, field)
