"""Files that clients keep on the server and name in their submits."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Path, Request, Response
from pydantic import Field
from starlette.responses import JSONResponse

from contract.job import utcnow
from jobs.kept_files import KeptFile, KeptFiles
from server.access import Principal, Reader, ServicesOf, Submitter, tenant_of
from server.decoding.decoded import DecodedFile
from server.decoding.formats import Kind
from server.delivery.files import kept_file_response
from server.openapi import PROBLEM, file_of
from server.routing import Router
from server.schemas import Wire
from server.services import Services
from server.submit.keep import KINDS, keep

router = Router(prefix="/v1/files", tags=["files"], responses=PROBLEM)
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "title": "KeepFile",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "As for a submit."},
                        "kind": {
                            "type": "string",
                            "enum": list(KINDS),
                            "description": "What it is to be used as. As the file says if not given; an MP4 "
                            "or WebM counts as audio.",
                        },
                    },
                }
            }
        },
    }
}


class File(Wire):
    """A file that is kept for submits."""

    id: str = Field(description="Give it in a submit instead of the file.")
    object: Literal["file"] = "file"
    kind: Kind
    format: str = Field(description="Media type of the file as it was sent.")
    sha256: str = Field(description="Of the file as it was sent.")
    bytes: int = Field(description="Of the file as it was sent.")
    stored_bytes: int = Field(description="Decoded; what counts against the limit.")
    width: int | None = Field(description="Pixels, of an image or a video.")
    height: int | None
    seconds: float | None = Field(description="Of sound or a video.")
    created_at: datetime
    expires_at: datetime = Field(description="Sending the same file again postpones it.")


class FileList(Wire):
    """All files that a key keeps, newest first."""

    object: Literal["list"] = "list"
    data: list[File]


class FileDeleted(Wire):
    id: str
    object: Literal["file.deleted"] = "file.deleted"
    deleted: Literal[True] = True


def _view(file: KeptFile) -> File:
    found = DecodedFile.of(file.answer, "")
    return File.model_validate(
        {
            "id": file.id,
            "kind": file.kind,
            "format": found.format,
            "sha256": file.received_sha256,
            "bytes": file.received_bytes,
            "stored_bytes": file.decoded.size,
            "width": found.width or None,
            "height": found.height or None,
            "seconds": found.seconds or None,
            "created_at": file.created_at,
            "expires_at": file.expires_at,
        }
    )


FileId = Annotated[str, Path(description="Id of a kept file: `file_` and 36 letters and digits.")]


def _owned(file_id: str, services: Services, principal: Principal) -> KeptFile:
    return KeptFiles(services.store).get(principal.owner, file_id, utcnow())


def _readable(file_id: FileId, services: ServicesOf, principal: Reader) -> KeptFile:
    return _owned(file_id, services, principal)


def _writable(file_id: FileId, services: ServicesOf, principal: Submitter) -> KeptFile:
    return _owned(file_id, services, principal)


ReadableFile = Annotated[KeptFile, Depends(_readable)]
WritableFile = Annotated[KeptFile, Depends(_writable)]


@router.post(
    "",
    status_code=201,
    response_model=File,
    openapi_extra=BODY,
    summary="Keep a file",
    responses={200: {"model": File, "description": "It was kept already, and is now kept longer."}},
)
async def create_file(request: Request, services: ServicesOf, principal: Submitter) -> Response:
    """Send a file once, to name it in any number of submits. It is decoded once and belongs to your key."""
    file, created = await keep(request, services, principal)
    return JSONResponse(_view(file).model_dump(mode="json"), status_code=201 if created else 200)


@router.get("", response_model=FileList, summary="List kept files")
async def list_files(request: Request, services: ServicesOf, principal: Reader) -> Response:
    """Your own files, newest first."""
    async with services.listing.turn(tenant_of(principal, request)):
        text = await asyncio.to_thread(_list_text, services, principal.owner)
    return Response(text, media_type="application/json")


def _list_text(services: Services, owner: str) -> bytes:
    files = KeptFiles(services.store).of(owner, utcnow())
    return FileList(data=[_view(file) for file in files]).model_dump_json().encode()


@router.get("/{file_id}", response_model=File, summary="Look at a kept file")
def get_file(file: ReadableFile) -> File:
    return _view(file)


@router.get(
    "/{file_id}/content",
    summary="Get a kept file",
    response_class=Response,
    responses=file_of("image/png", "audio/wav", "video/mp4"),
)
def get_content(file: ReadableFile, services: ServicesOf, request: Request) -> Response:
    """The file as it was decoded: PNG, WAV or MP4."""
    return kept_file_response(services.store, file, request)


@router.delete("/{file_id}", response_model=FileDeleted, summary="Delete a kept file")
def delete_file(file: WritableFile, services: ServicesOf) -> FileDeleted:
    """Remove the file. Jobs that were submitted with it have copies."""
    KeptFiles(services.store).remove(file)
    return FileDeleted(id=file.id)
