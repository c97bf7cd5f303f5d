"""Routes for watching a job while it is rendered: its finished clips with sound, as a stream or one file."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request, Response

from server.access import DownloadableJob, ServicesOf, SignedQuery
from server.delivery.files import file_response, finished_file
from server.delivery.stream import (
    HEADER_NAME,
    PLAYLIST,
    fragment_file,
    header_file,
    playlist,
    preview_response,
    stream_path,
)
from server.openapi import PROBLEM, VIDEO_FILE, file_of
from server.routing import Router
from server.views import job_path

FragmentNumber = Annotated[int, Path(ge=0, le=100_000, description="Number of the clip, from 0.")]
router = Router(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEM)


@router.get(
    "/{job_id}/stream.m3u8",
    summary="Stream a job",
    response_class=Response,
    responses={200: {"description": "The playlist.", "content": {PLAYLIST: {"schema": {"type": "string"}}}}},
)
def get_stream(
    job: DownloadableJob,
    services: ServicesOf,
    expires: SignedQuery = None,
    signature: SignedQuery = None,
) -> Response:
    """A playlist (HLS) of the finished clips with sound, which grows until the job is over.

    The parts of a signed playlist are signed too, and valid for as long.
    """
    folder = stream_path(job_path(job.id))

    def link(name: str) -> str:
        query = ""
        if signature is not None and expires is not None:
            query = "?" + services.signer.sign_until(f"{folder}/{name}", expires).partition("?")[2]
        return f"stream/{name}{query}"

    text = playlist(job, link)
    return Response(text, media_type=PLAYLIST, headers={"Cross-Origin-Resource-Policy": "cross-origin"})


@router.get(
    f"/{{job_id}}/stream/{HEADER_NAME}",
    summary="Get the stream's header",
    response_class=Response,
    responses=VIDEO_FILE,
)
def get_stream_header(job: DownloadableJob, services: ServicesOf, request: Request) -> Response:
    """The header that a player reads before the first fragment (`EXT-X-MAP`)."""
    return file_response(services.store, header_file(job), request)


@router.get(
    "/{job_id}/stream/{clip}.m4s",
    summary="Get a fragment of the stream",
    response_class=Response,
    responses=file_of("video/mp4"),
)
def get_fragment(
    job: DownloadableJob, services: ServicesOf, request: Request, clip: FragmentNumber
) -> Response:
    """A clip with its slice of the speech."""
    return file_response(services.store, fragment_file(job, clip), request)


@router.get("/{job_id}/preview.mp4", summary="Get a preview", response_class=Response, responses=VIDEO_FILE)
def get_preview(job: DownloadableJob, services: ServicesOf, request: Request) -> Response:
    """The clips finished so far, with sound, as one file; the video itself once there is one."""
    if job.video is not None:
        return file_response(services.store, finished_file(job, job.video, "video"), request)
    return preview_response(services.store, job, request)
