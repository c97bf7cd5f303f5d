"""The files of a job that clients may have."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from contract.entries import ClipFinished
from contract.job import StoredFile
from contract.request import FILE_FIELDS
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, file_key
from jobs.kept_files import FileNotKept, KeptFile
from server.delivery.conditional import conditional_file
from server.errors import ApiError

SIGNED_S: Final = 3600
"""How long the URL of a file in storage is good, if clients are sent there. Players come back for parts."""


@dataclass(frozen=True)
class JobFile:
    """A file of a job, ready to be sent."""

    job_id: str
    stored: StoredFile
    made_at: datetime
    filename: str
    """The name under which a browser saves the file."""


def finished_file(job: Job, stored: StoredFile | None, what: str) -> JobFile:
    """A file that comes with the end of a job. Raises ApiError if the job has none, or none yet."""
    if stored is not None and job.completed_at is not None:
        return JobFile(job.id, stored, job.completed_at, job.id + Path(stored.name).suffix)
    if job.state.is_terminal:
        raise ApiError("no_result", f"The job {job.state.in_words}: there is no {what}.")
    raise ApiError("job_not_finished", "The job is not finished.", retry_after_s=2)


def input_file(job: Job, field: str) -> JobFile:
    """The decoded file of a field, as the model gets it. Raises ApiError if the job has none."""
    stored: StoredFile | None = getattr(job.submitted.inputs, field) if field in FILE_FIELDS else None
    if stored is None:
        raise ApiError("not_found", "The job has no such input.")
    return JobFile(job.id, stored, job.submitted.at, f"{job.id}-{field}{Path(stored.name).suffix}")


def thumbnail_file(job: Job) -> JobFile:
    """The poster of the newest clip that has one, or else the person's photo. Raises ApiError."""
    for entry in reversed(job.clips):
        if entry.poster is not None:
            return JobFile(job.id, entry.poster, entry.at, f"{job.id}.jpg")
    if job.poster is not None:
        return finished_file(job, job.poster, "thumbnail")
    if job.submitted.thumbnail is None:
        raise ApiError("no_result", "The job was submitted to an older version, which made no thumbnails.")
    return JobFile(job.id, job.submitted.thumbnail, job.submitted.at, f"{job.id}.jpg")


def clip_file(job: Job, clip: int) -> JobFile:
    """The clip number `clip`, counted from 0. Raises ApiError if the job has no such clip, or not yet."""
    entry = finished_clip(job, clip)
    return JobFile(job.id, entry.video, entry.at, f"{job.id}-{clip}.mp4")


def poster_file(job: Job, clip: int) -> JobFile:
    """A still picture of a clip. Raises ApiError as `clip_file` does."""
    entry = finished_clip(job, clip)
    if entry.poster is None:
        raise ApiError("no_result", "The clip was rendered by an older version, which made no posters.")
    return JobFile(job.id, entry.poster, entry.at, f"{job.id}-{clip}.jpg")


def router_map_file(job: Job, clip: int) -> JobFile:
    """Where the router sent hands and faces in a clip. Raises ApiError as `clip_file` does."""
    entry = finished_clip(job, clip)
    if entry.router_map is None:
        raise ApiError("no_result", "The clip has none: the job was submitted without router_maps.")
    return JobFile(job.id, entry.router_map, entry.at, f"{job.id}-{clip}-router-map.mp4")


def finished_clip(job: Job, clip: int) -> ClipFinished:
    """What the journal says about a clip. Raises ApiError if the job has no such clip, or not yet."""
    entry = next((entry for entry in job.clips if entry.clip == clip), None)
    if entry is not None:
        return entry
    if clip < job.submitted.params.num_clips and not job.state.is_terminal:
        raise ApiError("job_not_finished", "The clip is not finished.", retry_after_s=2)
    raise ApiError("not_found", "The job has no such clip.")


def file_headers(digest: str, made_at: datetime, filename: str) -> dict[str, str]:
    """The headers of a file of a job."""
    return {
        "ETag": f'"{digest}"',
        "Last-Modified": format_datetime(made_at.replace(microsecond=0), usegmt=True),
        "Cache-Control": "private, no-cache",
        "Cross-Origin-Resource-Policy": "cross-origin",  # whoever has a key or a signed link may embed it
        "Content-Disposition": f'inline; filename="{filename}"',
    }


def file_response(store: ArtifactStore, file: JobFile, request: Request) -> Response:
    """The answer to a GET or HEAD of a file. Raises ApiError, JobNotFound."""
    try:
        key = file_key(file.job_id, file.stored)
        return _response(store, key, file.stored, file.made_at, file.filename, request)
    except FileNotFoundError as error:
        raise JobNotFound(file.job_id) from error  # expired or deleted a moment ago


def kept_file_response(store: ArtifactStore, file: KeptFile, request: Request) -> Response:
    """The answer to a GET or HEAD of a kept file. Raises ApiError, FileNotKept."""
    name = file.id + Path(file.decoded.name).suffix
    try:
        return _response(store, file.key, file.decoded, file.created_at, name, request)
    except FileNotFoundError as error:
        raise FileNotKept(file.id) from error


def _response(
    store: ArtifactStore, key: str, stored: StoredFile, made_at: datetime, filename: str, request: Request
) -> Response:
    """Raises ApiError, FileNotFoundError."""
    headers = file_headers(stored.sha256, made_at, filename)
    if request.method == "GET":  # a signed URL is good for one method
        url = store.signed_url(key, SIGNED_S, stored.media_type, headers["Content-Disposition"])
        if url is not None:
            return RedirectResponse(url, status_code=302, headers={"Cache-Control": "private, no-store"})
    path = store.local_path(key)
    status = path.stat()
    if status.st_size != stored.size:
        raise ApiError("no_result", "The file is damaged in storage.")
    return conditional_file(path, request, status, stored.media_type, headers)
