"""A video at a glance: the pictures of its clips in one JPEG, row by row, as OpenAI's Videos API offers."""

from __future__ import annotations

import hashlib
import io
from math import ceil, sqrt
from typing import Final

from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, file_key
from server.delivery.conditional import KEPT_BY_304, failed_condition
from server.delivery.files import file_headers, finished_file
from server.errors import ApiError

SHEET_QUALITY: Final = 85


def spritesheet_response(store: ArtifactStore, job: Job, request: Request) -> Response:
    """The answer to a GET or HEAD of a finished job's spritesheet. Raises ApiError, JobNotFound."""
    made_at = finished_file(job, job.video, "spritesheet").made_at
    posters = [clip.poster for clip in job.clips if clip.poster is not None]
    if not posters:
        raise ApiError("no_result", "The video was rendered by an older version, which made no pictures.")
    digest = hashlib.sha256("".join(poster.sha256 for poster in posters).encode()).hexdigest()
    headers = file_headers(digest, made_at, f"{job.id}-spritesheet.jpg")
    match failed_condition(request.headers, headers["ETag"], headers["Last-Modified"]):
        case 412:
            raise ApiError("precondition_failed", "The file is not the one that the condition names.")
        case 304:
            kept = {name: value for name, value in headers.items() if name.lower() in KEPT_BY_304}
            return Response(status_code=304, headers=kept)
    try:
        pictures = [store.local_path(file_key(job.id, poster)).read_bytes() for poster in posters]
    except FileNotFoundError as error:
        raise JobNotFound(job.id) from error
    return Response(spritesheet(pictures), media_type="image/jpeg", headers=headers)


def spritesheet(pictures: list[bytes]) -> bytes:
    """One JPEG of several of the same size, about as wide as high in pictures, row by row from the left."""
    columns = ceil(sqrt(len(pictures)))
    sheet: Image.Image | None = None
    for number, data in enumerate(pictures):
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            width, height = picture.size
            if sheet is None:
                sheet = Image.new("RGB", (columns * width, ceil(len(pictures) / columns) * height))
            sheet.paste(picture, (number % columns * width, number // columns * height))
    assert sheet is not None, "there is at least one picture"
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=SHEET_QUALITY)
    return out.getvalue()
