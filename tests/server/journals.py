"""Plays the worker: appends what a worker would to the journal of a job, and writes the files."""

from __future__ import annotations

import hashlib
from datetime import datetime

from contract.entries import ClipFinished, Failed, Started, Succeeded
from contract.job import JobError, Stage, StoredFile, utcnow
from contract.state import Job
from jobs.journal import job_prefix
from tests.server.conftest import Api

VIDEO = bytes(range(256)) * 40


def put(api: Api, job_id: str, name: str, data: bytes, media_type: str = "video/mp4") -> StoredFile:
    store = api.services.store
    path = store.scratch() / name
    path.write_bytes(data)
    assert store.put_file(path, f"{job_prefix(job_id)}/{name}")
    return StoredFile(
        name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=media_type
    )


def start(api: Api, job_id: str) -> Job:
    job = api.services.journal.read(job_id)
    return api.services.journal.append(job, Started(at=utcnow(), attempt=job.attempt + 1, worker="w1"))


def finish_clip(
    api: Api,
    job_id: str,
    clip: int,
    gpu_seconds: float = 1.5,
    at: datetime | None = None,
    video: bytes = VIDEO[:100],
    poster: bytes | None = None,
    fragment: bytes | None = None,
    header: bytes = b"header",
    router_map: bytes | None = None,
) -> Job:
    job = api.services.journal.read(job_id)
    entry = ClipFinished(
        at=at or utcnow(),
        attempt=job.attempt,
        clip=clip,
        video=put(api, job_id, f"clip-{clip}.mp4", video),
        motion=put(api, job_id, f"motion-{clip}.bin", b"motion"),
        fragment=put(api, job_id, f"fragment-{clip}.m4s", fragment or b"fragment %d" % clip),
        stream_header=put(api, job_id, "header.mp4", header) if clip == 0 else None,
        poster=put(api, job_id, f"poster-{clip}.jpg", poster or b"poster %d" % clip, "image/jpeg"),
        router_map=router_map and put(api, job_id, f"router-map-{clip}.mp4", router_map),
        gpu_seconds=gpu_seconds,
    )
    return api.services.journal.append(job, entry)


def succeed(api: Api, job_id: str, video: bytes = VIDEO, started: bool = False) -> Job:
    """Start the job unless it is, finish its clips, publish a video."""
    job = api.services.journal.read(job_id) if started else start(api, job_id)
    for number in range(len(job.clips), job.submitted.params.num_clips):
        job = finish_clip(api, job_id, number)
    entry = Succeeded(
        at=utcnow(),
        attempt=job.attempt,
        video=put(api, job_id, "video-1.mp4", video),
        duration_s=1.0,
        gpu_seconds=0.5,
    )
    return api.services.journal.append(job, entry)


def fail(api: Api, job_id: str, started: bool = False) -> Job:
    job = api.services.journal.read(job_id) if started else start(api, job_id)
    error = JobError(code="out_of_memory", message="Too large for this GPU.", stage=Stage.DENOISING)
    return api.services.journal.append(job, Failed(at=utcnow(), attempt=job.attempt, error=error))
