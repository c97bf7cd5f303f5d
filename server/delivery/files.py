"""Serving a finished file: one range at most, strong ETag, conditional requests (RFC 9110)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import anyio
from starlette.responses import Response, StreamingResponse

from contract.job import StoredFile
from server.errors import ApiError

CHUNK_BYTES: Final = 2**18
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """(first, last) byte of a Range header, None if the header is to be ignored. Raises ApiError (416).

    Several ranges are refused: assembling them costs the server more than the client.
    """
    unsatisfiable = ApiError(
        "range_not_satisfiable",
        "One range within the file, please.",
        limit=size,
        headers={"Content-Range": f"bytes */{size}"},
    )
    if not header.strip().lower().startswith("bytes="):
        return None  # an unknown unit
    if "," in header:
        raise unsatisfiable
    match = _RANGE.fullmatch(header.strip().lower().replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None  # malformed: to be ignored
    if not match[1]:
        length = int(match[2])
        if length == 0:
            raise unsatisfiable
        return max(0, size - length), size - 1
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        return None  # malformed, too
    if first >= size:
        raise unsatisfiable
    return first, min(int(match[2]), size - 1) if match[2] else size - 1


def _matches(header: str, etag: str) -> bool:
    candidates = [candidate.strip().removeprefix("W/") for candidate in header.split(",")]
    return "*" in candidates or etag in candidates


async def _chunks(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(first)
        left = last - first + 1
        while left > 0:
            chunk = await file.read(min(CHUNK_BYTES, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


def file_response(
    path: Path, stored: StoredFile, made_at: datetime, headers: Mapping[str, str], method: str, filename: str
) -> Response:
    """The answer to a GET or HEAD of a stored file. Raises ApiError."""
    etag = f'"{stored.sha256}"'
    common = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Last-Modified": format_datetime(made_at.replace(microsecond=0), usegmt=True),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{filename}"',
    }
    size = os.stat(path).st_size  # noqa: PTH116 (one call, where Path would make two)
    if size != stored.size:
        raise ApiError("no_result", "The file is damaged in storage.")
    if "if-match" in headers and not _matches(headers["if-match"], etag):
        raise ApiError("precondition_failed", "The file is not the one of If-Match.")
    if "if-none-match" in headers and _matches(headers["if-none-match"], etag):
        return Response(status_code=304, headers=common)
    wanted = None
    # If-Range: only a strong validator that matches makes the range count.
    if (
        "range" in headers
        and method == "GET"
        and headers.get("if-range", etag) in (etag, common["Last-Modified"])
    ):
        wanted = parse_range(headers["range"], size)
    first, last = wanted or (0, size - 1)
    common["Content-Length"] = str(last - first + 1)
    if wanted is not None:
        common["Content-Range"] = f"bytes {first}-{last}/{size}"
    status = 200 if wanted is None else 206
    if method == "HEAD":
        return Response(status_code=status, headers=common, media_type=stored.media_type)
    return StreamingResponse(_chunks(path, first, last), status, common, media_type=stored.media_type)
