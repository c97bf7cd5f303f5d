"""Streams a job (HLS, RFC 8216), or gives it as one file, from its first finished clip on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contract.entries import ClipFinished
from contract.job import StoredFile
from contract.state import Job
from contract.video import CLIP_FRAMES, FPS
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, file_key
from server.delivery.conditional import CHUNK_BYTES, KEPT_BY_304, failed_condition, range_of
from server.delivery.files import JobFile, file_headers, finished_clip
from server.errors import ApiError

PLAYLIST: Final = "application/vnd.apple.mpegurl"
HEADER_NAME: Final = "header.mp4"
LONGEST_S: Final = -(-CLIP_FRAMES // FPS)
"""Seconds of the longest fragment, rounded up."""


def stream_path(job_path: str) -> str:
    """The folder of the parts of a stream."""
    return f"{job_path}/stream"


def _streamed(job: Job) -> list[ClipFinished]:
    """The clips that can be played. Raises ApiError if there is none yet, or none at all."""
    header = finished_clip(job, 0)
    if header.stream_header is None or any(clip.fragment is None for clip in job.clips):
        raise ApiError("no_result", "The clips were rendered by an older version, which made no streams.")
    return list(job.clips)


def _seconds(job: Job, clip: int) -> float:
    params = job.submitted.params
    left = CLIP_FRAMES if params.parity else params.num_frames - clip * CLIP_FRAMES
    return min(CLIP_FRAMES, left) / FPS


def playlist(job: Job, link: Callable[[str], str]) -> str:
    """The playlist of a job as of now; `link` makes an address of the name of a part. Raises ApiError."""
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{LONGEST_S}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{link(HEADER_NAME)}"',
    ]
    for entry in _streamed(job):
        lines += [f"#EXTINF:{_seconds(job, entry.clip):.5f},", link(f"{entry.clip}.m4s")]
    if job.state.is_terminal:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join([*lines, ""])


def header_file(job: Job) -> JobFile:
    """The header that a player reads before the first fragment. Raises ApiError."""
    entry = finished_clip(job, 0)
    return JobFile(job.id, _known(entry.stream_header), entry.at, f"{job.id}-header.mp4")


def fragment_file(job: Job, clip: int) -> JobFile:
    """A clip with its slice of the speech. Raises ApiError."""
    entry = finished_clip(job, clip)
    return JobFile(job.id, _known(entry.fragment), entry.at, f"{job.id}-{clip}.m4s")


def _known(file: StoredFile | None) -> StoredFile:
    if file is None:
        raise ApiError("no_result", "The clip was rendered by an older version, which made no streams.")
    return file


def preview_response(store: ArtifactStore, job: Job, request: Request) -> Response:
    """The finished clips as one fragmented MP4 with sound. Raises ApiError, JobNotFound."""
    clips = _streamed(job)
    files = [_known(clips[0].stream_header), *(_known(entry.fragment) for entry in clips)]
    if not store.exists(file_key(job.id, files[0])):
        raise JobNotFound(job.id)
    size = sum(file.size for file in files)
    digest = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    headers = file_headers(digest, clips[-1].at, f"{job.id}-preview.mp4")
    headers |= {"Content-Type": "video/mp4", "Accept-Ranges": "bytes"}
    match failed_condition(request.headers, headers["ETag"], headers["Last-Modified"]):
        case 412:
            raise ApiError("precondition_failed", "The file is not the one that the condition names.")
        case 304:
            kept = {name: value for name, value in headers.items() if name.lower() in KEPT_BY_304}
            return Response(status_code=304, headers=kept)
    same_version = request.headers.get("if-range", headers["ETag"]) in (
        headers["ETag"],
        headers["Last-Modified"],
    )
    wanted = request.headers.get("range") if request.method == "GET" and same_version else None
    bounds = None if wanted is None else range_of(wanted, size)
    first, last = bounds or (0, size - 1)
    headers["Content-Length"] = str(last - first + 1)
    if bounds is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    if request.method == "HEAD":
        return Response(headers=headers)
    status = 200 if bounds is None else 206
    return StreamingResponse(_bytes_of(store, job, files, first, last), status_code=status, headers=headers)


def _bytes_of(
    store: ArtifactStore, job: Job, files: list[StoredFile], first: int, last: int
) -> Iterator[bytes]:
    """Bytes `first` to `last` of files of a job, one behind the other."""
    begin = 0
    for stored in files:
        end = begin + stored.size
        position, stop = max(first, begin), min(last + 1, end)
        if position < stop:
            # Not earlier: a remote store keeps its local copies for a while only, and clients may be slow.
            with store.local_path(file_key(job.id, stored)).open("rb") as file:
                file.seek(position - begin)
                while position < stop and (data := file.read(min(CHUNK_BYTES, stop - position))):
                    position += len(data)
                    yield data
        begin = end
