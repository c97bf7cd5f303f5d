"""Sending a file as RFC 9110 requires: conditional requests (section 13) and ranges (section 14).

Starlette's FileResponse reads the file and cuts out the range. It knows no conditions, and it answers a
malformed Range header with an error where the RFC says to ignore it. So the conditions are checked here, and
FileResponse sees a Range header only if it names one range within the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from server.errors import ApiError

CHUNK_BYTES: Final = 2**18
KEPT_BY_304: Final = ("etag", "last-modified", "cache-control")
_TAG: Final = re.compile(r'(W/)?("[^"]*")')
_RANGE: Final = re.compile(r"([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})")


class _File(FileResponse):
    chunk_size = CHUNK_BYTES
    takes_range = True
    """If false, the whole file is sent, whatever the Range header says."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if self.takes_range or pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def conditional_file(
    path: Path, request: Request, status: os.stat_result, media_type: str, headers: Mapping[str, str]
) -> Response:
    """The answer to a GET or HEAD of the file `path`, whose `stat` is `status`. Raises ApiError.

    `headers` go with the file. An ETag or a Last-Modified that they lack is made from the status.
    """
    file = _File(path, headers=headers, media_type=media_type, stat_result=status)
    etag, last_modified = file.headers["etag"], file.headers["last-modified"]
    match failed_condition(request.headers, etag, last_modified):
        case 412:
            raise ApiError("precondition_failed", "The file is not the one that the condition names.")
        case 304:
            return Response(status_code=304, headers={name: file.headers[name] for name in KEPT_BY_304})
    # Ranges are defined for GET alone, and an If-Range that names another version voids them.
    same_version = request.headers.get("if-range", etag) in (etag, last_modified)
    wanted = request.headers.get("range") if request.method == "GET" and same_version else None
    file.takes_range = wanted is not None and range_of(wanted, status.st_size) is not None
    return file


def failed_condition(headers: Headers, etag: str, last_modified: str) -> Literal[304, 412] | None:
    """The HTTP status that the conditions of a GET or HEAD lead to. None if the file is to be sent.

    Tags take precedence over dates. A malformed date is ignored.
    """
    if "if-match" in headers:
        if not _lists(headers.getlist("if-match"), etag, weak=False):
            return 412
    elif _is_newer(last_modified, headers.get("if-unmodified-since")) is True:
        return 412
    if "if-none-match" in headers:
        if _lists(headers.getlist("if-none-match"), etag, weak=True):
            return 304
    elif _is_newer(last_modified, headers.get("if-modified-since")) is False:
        return 304
    return None


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of the one range of a file of `size` bytes that a Range header names. None if the
    header is to be ignored.

    Raises ApiError (416) for a range outside the file, and for several ranges: putting them together costs
    the server more than the client.
    """
    outside = ApiError(
        "range_not_satisfiable",
        "The Range header must name one range within the file.",
        limit=size,
        headers={"Content-Range": f"bytes */{size}"},
    )
    unit, _, ranges = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    if "," in ranges:
        raise outside
    match = _RANGE.fullmatch(ranges.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        if int(match[2]) == 0:
            raise outside
        return max(0, size - int(match[2])), size - 1
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise outside
    return first, min(int(match[2] or size), size - 1)


def _lists(fields: list[str], etag: str, weak: bool) -> bool:
    """Whether the tags of If-Match or If-None-Match include `etag`. With `weak`, a weak tag counts, too."""
    text = ",".join(fields)
    return text.strip() == "*" or any(
        tag == etag and (weak or not is_weak) for is_weak, tag in _TAG.findall(text)
    )


def _is_newer(last_modified: str, header: str | None) -> bool | None:
    """Whether a file has changed since the date in a header. None if the header is missing or malformed."""
    try:
        changed, date = (parsedate_to_datetime(text or "") for text in (last_modified, header))
    except (ValueError, TypeError, OverflowError):
        return None
    return changed > (date if date.tzinfo is not None else date.replace(tzinfo=UTC))
