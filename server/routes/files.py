"""Files of a job other than its video and clips: its inputs, and still pictures."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request, Response

from contract.request import FILE_FIELDS
from server.access import DownloadableJob, ServicesOf
from server.delivery.files import file_response, input_file, poster_file, router_map_file, thumbnail_file
from server.openapi import PICTURE_FILE, PROBLEM, VIDEO_FILE, file_of
from server.routing import Router

ClipNumber = Annotated[int, Path(ge=0, le=100_000, description="Counted from 0.")]
InputName = Annotated[
    str,
    Path(
        description="The field in which the file was submitted.",
        json_schema_extra={"enum": list(FILE_FIELDS)},
    ),
]
router = Router(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEM)
INPUT_FILE = file_of("image/png", "audio/wav", "video/mp4")


@router.get("/{job_id}/inputs/{name}", summary="Get an input", response_class=Response, responses=INPUT_FILE)
def get_input(job: DownloadableJob, services: ServicesOf, request: Request, name: InputName) -> Response:
    """A file that the job was submitted with, as it was decoded: PNG, WAV or MP4."""
    return file_response(services.store, input_file(job, name), request)


@router.get("/{job_id}/thumbnail", summary="Get a thumbnail", response_class=Response, responses=PICTURE_FILE)
def get_thumbnail(job: DownloadableJob, services: ServicesOf, request: Request) -> Response:
    """A small picture at any time: of the newest finished clip, or before that of the person's photo."""
    return file_response(services.store, thumbnail_file(job), request)


@router.get(
    "/{job_id}/clips/{clip}/poster",
    summary="Get a clip's poster",
    response_class=Response,
    responses=PICTURE_FILE,
)
def get_poster(job: DownloadableJob, services: ServicesOf, request: Request, clip: ClipNumber) -> Response:
    """A small picture from the middle of a clip."""
    return file_response(services.store, poster_file(job, clip), request)


@router.get(
    "/{job_id}/clips/{clip}/router_map",
    summary="Get a clip's router map",
    response_class=Response,
    responses=VIDEO_FILE,
)
def get_router_map(
    job: DownloadableJob, services: ServicesOf, request: Request, clip: ClipNumber
) -> Response:
    """A small video, as long as the clip: red where the network saw hands, green where it saw the face. Kept
    if the job was submitted with `router_maps`.
    """
    return file_response(services.store, router_map_file(job, clip), request)
