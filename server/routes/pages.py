"""The studio, the page for admins and the API reference: static files that load nothing from other sites."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import Request, Response

from server.delivery.conditional import failed_condition
from server.errors import ApiError
from server.routing import Router

STATIC: Final = Path(__file__).parent.parent / "static"
MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
router = Router(include_in_schema=False)


@dataclass(frozen=True)
class StaticFile:
    """A file in memory, with its bytes as they go over the wire."""

    media_type: str
    plain: bytes
    compressed: bytes
    tag: str

    @classmethod
    def read(cls, path: Path) -> StaticFile:
        plain = path.read_bytes()
        tag = hashlib.sha256(plain).hexdigest()[:32]
        return cls(MEDIA_TYPES[path.suffix], plain, gzip.compress(plain, mtime=0), tag)


FILES: Final[Mapping[str, StaticFile]] = {
    path.relative_to(STATIC).as_posix(): StaticFile.read(path) for path in STATIC.rglob("*") if path.is_file()
}
"""Every static file by its path below the folder. A path that a client names is only ever looked up here."""


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header names gzip, and not with the weight 0."""
    codings = [coding.replace(" ", "").lower().split(";") for coding in accepted.split(",")]
    return any(
        name == "gzip" and not re.fullmatch(r"q=0(\.0*)?", "".join(weight)) for name, *weight in codings
    )


def _answer(name: str, request: Request) -> Response:
    """The file, compressed for clients that accept it. A browser asks each time, and mostly gets a 304."""
    file = FILES[name]
    compressed = _takes_gzip(request.headers.get("accept-encoding", ""))
    etag = f'"{file.tag}{"-gz" if compressed else ""}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    match failed_condition(request.headers, etag, last_modified=""):
        case 412:
            raise ApiError("precondition_failed", "The file is not the one that the condition names.")
        case 304:
            return Response(status_code=304, headers=headers)
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(
        file.compressed if compressed else file.plain, media_type=file.media_type, headers=headers
    )


@router.get("/")
async def page(request: Request) -> Response:
    """The studio: make a video in the browser."""
    return _answer("index.html", request)


@router.get("/admin")
async def admin(request: Request) -> Response:
    """Workers, queue and keys. The page asks for them with an admin's key."""
    return _answer("admin.html", request)


@router.get("/docs")
async def reference(request: Request) -> Response:
    """The OpenAPI document, readable without any other site."""
    return _answer("docs.html", request)


@router.get("/static/{name:path}")
async def static(name: str, request: Request) -> Response:
    if name not in FILES:
        raise ApiError("not_found", "There is no such file.")
    return _answer(name, request)
