"""Serving a finished file: one range at most, strong ETag, conditional requests (RFC 9110)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contract.job import StoredFile
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, file_key
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


@dataclass(frozen=True)
class JobFile:
    """A file of a job, ready to be sent."""

    job_id: str
    stored: StoredFile
    made_at: datetime
    filename: str
    """What a browser calls it when it saves the file."""


def finished_file(job: Job, stored: StoredFile | None, what: str) -> JobFile:
    """A file that a job has from its end on. Raises ApiError if the job has none, or none yet."""
    if stored is not None and job.completed_at is not None:
        return JobFile(job.id, stored, job.completed_at, job.id + Path(stored.name).suffix)
    if job.state.is_terminal:
        raise ApiError("no_result", f"The job has {job.state.value}: there is no {what}.")
    raise ApiError("job_not_finished", "The job is not finished.", retry_after_s=2)


def clip_file(job: Job, clip: int) -> JobFile:
    """A finished clip of a job, counted from 0. Raises ApiError if the job has no such clip, or not yet."""
    entry = next((entry for entry in job.clips if entry.clip == clip), None)
    if entry is not None:
        return JobFile(job.id, entry.video, entry.at, f"{job.id}-{clip}.mp4")
    if clip < job.submitted.params.num_clips and not job.state.is_terminal:
        raise ApiError("job_not_finished", "The clip is not finished.", retry_after_s=2)
    raise ApiError("not_found", "The job has no such clip.")


def file_response(store: ArtifactStore, file: JobFile, request: Request) -> Response:
    """The answer to a GET or HEAD of a file. Raises ApiError, JobNotFound."""
    stored, headers, method = file.stored, request.headers, request.method
    try:
        path = store.local_path(file_key(file.job_id, stored))
    except FileNotFoundError as error:
        raise JobNotFound(file.job_id) from error  # expired or deleted a moment ago
    etag = f'"{stored.sha256}"'
    common = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Last-Modified": format_datetime(file.made_at.replace(microsecond=0), usegmt=True),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{file.filename}"',
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
