"""What lists and limits need to know about a job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from contract.job import JobState, StoredFile
from contract.speed import Work
from contract.state import Job


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What limits and lists need to know about a job."""

    id: str
    owner: str
    sequence: int
    state: JobState
    stored_bytes: int
    """The bytes stored, plus an estimate of those that an unfinished job will still store."""
    gpu_seconds: float
    checkpoint: str
    remaining: Work | None
    """The remaining work; None when the job is over."""
    webhook_host: str
    """Empty if the job named no webhook."""
    created_at: datetime
    labels: frozenset[bytes]
    """The labels of its metadata, made by `label_of`."""
    last_at: datetime
    """When the job last used the GPU, or else when it was submitted."""

    @staticmethod
    def of(job: Job) -> JobSummary:
        inputs = job.submitted.inputs
        files: list[StoredFile | None] = [
            inputs.person_image,
            inputs.audio,
            inputs.product_image,
            inputs.pose_video,
        ]
        files += [job.video, job.poster, job.submitted.thumbnail]
        files += [file for clip in job.clips for file in clip.shown_files]
        if job.submitted.keep_motion:
            files += [clip.motion for clip in job.clips]
        elif job.clips and job.video is None:  # else workers keep the newest only, until the video is there
            files.append(job.clips[-1].motion)
        stored = sum(file.size for file in files if file is not None)
        params, remaining = job.submitted.params, None
        if not job.state.is_terminal:
            stored = max(
                stored,
                params.expected_bytes(job.submitted.keep_motion)
                + sum(file.size for file in files[:4] if file),
            )
            remaining = Work.of(params, params.num_clips - len(job.clips))
        return JobSummary(
            id=job.id,
            owner=job.submitted.owner,
            sequence=job.sequence,
            state=job.state,
            stored_bytes=stored,
            gpu_seconds=job.gpu_seconds,
            checkpoint=job.submitted.checkpoint,
            remaining=remaining,
            webhook_host=urlsplit(job.submitted.webhook_url or "").netloc,
            created_at=job.submitted.at,
            labels=frozenset(label_of(f"{key}:{value}") for key, value in job.submitted.metadata.items()),
            last_at=job.completed_at or (job.clips[-1].at if job.clips else job.submitted.at),
        )


def label_of(text: str) -> bytes:
    """A short stand-in for "key:value" of a job's metadata: the index keeps those of all jobs in memory."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
