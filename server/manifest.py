"""The manifest of a job: all that determines its video's bits, and hashes of its inputs and outputs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from contract.attention import AttentionBackend
from contract.choices import Preset
from contract.entries import Started
from contract.job import JobState, StoredFile
from contract.memory import MemoryMode
from contract.state import Job
from jobs.cards import read_sums
from server.schemas import CheckpointView, ParamsView, SpeechView, Wire
from server.services import Services
from server.views import params_view


class FileHash(Wire):
    """A file as it is stored."""

    sha256: str
    size: int = Field(description="Bytes.")
    media_type: str


class VideoHash(FileHash):
    """The finished video."""

    content_sha256: str | None = Field(
        description="SHA-256 without its content credentials, which hold a random number; null: it has none."
    )


class InputHash(FileHash):
    """An input, as it was sent and as it is stored."""

    received_sha256: str | None = Field(description="SHA-256 of the file as it was sent, if known.")


class ClipManifest(FileHash):
    """A finished clip."""

    clip: int = Field(description="Counted from 0.")
    seed: int
    prompt: str
    attempt: int = Field(description="The attempt that rendered it; 0: the parent did.")


class AttemptManifest(Wire):
    """The software, device and weights of an attempt, as far as its worker named them."""

    attempt: int = Field(description="Counted from 1.")
    started_at: datetime
    attention: AttentionBackend | None
    version: str | None = Field(description="Of the worker's program.")
    libraries: dict[str, str] = Field(description="Versions of what computes, by package.")
    device: str | None
    ranks: int | None = Field(description="Devices that rendered together.")
    memory_mode: MemoryMode | None
    fp8_compute: bool | None = Field(description="Whether weights of 8 bits were multiplied as such.")
    checkpoint_sha256: str | None = Field(description="SHA-256 of the checkpoint's SHA256SUMS.")


class Manifest(Wire):
    """How a video was made, or how it is being made."""

    id: str
    object: Literal["job.manifest"] = "job.manifest"
    status: JobState
    created_at: datetime
    completed_at: datetime | None
    model: str
    checkpoint: CheckpointView
    weights: dict[str, dict[str, str]] = Field(
        description="SHA-256 of each file of the checkpoint, by `checkpoint_sha256` of an attempt."
    )
    preset: Preset
    exact: bool = Field(description="Whether the video is what the checkpoint's own sampling gives.")
    params: ParamsView
    inputs: dict[str, InputHash]
    speech: SpeechView | None = Field(description="What the audio was made from, if it was a text.")
    clips: list[ClipManifest]
    attempts: list[AttemptManifest]
    consent: str | None
    video: VideoHash | None


def _hash_of(file: StoredFile) -> FileHash:
    return FileHash(sha256=file.sha256, size=file.size, media_type=file.media_type)


def _attempt_of(entry: Started) -> AttemptManifest:
    maker = entry.maker
    return AttemptManifest(
        attempt=entry.attempt,
        started_at=entry.at,
        attention=entry.attention,
        version=maker and maker.version,
        libraries=maker.libraries if maker else {},
        device=maker and maker.device,
        ranks=maker and maker.ranks,
        memory_mode=maker and maker.memory_mode,
        fp8_compute=maker and maker.fp8_compute,
        checkpoint_sha256=maker and maker.checkpoint_sha256,
    )


def _inputs_of(job: Job) -> dict[str, InputHash]:
    inputs, received = job.submitted.inputs, job.submitted.received
    files = {name: getattr(inputs, name) for name in type(inputs).model_fields}
    return {
        name: InputHash(**_hash_of(file).model_dump(), received_sha256=received.get(name))
        for name, file in files.items()
        if file is not None
    }


def manifest_of(job: Job, services: Services) -> Manifest:
    """The manifest of a job as of now. Raises UnreadableJob, OSError."""
    submitted, params = job.submitted, job.submitted.params
    started = [entry for entry in services.journal.entries(job.id, 1) if isinstance(entry, Started)]
    attempts = [_attempt_of(entry) for entry in started]
    digests = {attempt.checkpoint_sha256 for attempt in attempts if attempt.checkpoint_sha256}
    return Manifest(
        id=job.id,
        status=job.state,
        created_at=submitted.at,
        completed_at=job.completed_at,
        model=submitted.checkpoint,
        checkpoint=CheckpointView(name=submitted.checkpoint, trained=submitted.trained),
        weights={digest: read_sums(services.store, digest) for digest in sorted(digests)},
        preset=params.preset,
        exact=params.preset.is_exact,
        params=params_view(params),
        inputs=_inputs_of(job),
        speech=submitted.speech and SpeechView(**submitted.speech.model_dump()),
        clips=[
            ClipManifest(
                **_hash_of(entry.video).model_dump(),
                clip=entry.clip,
                seed=params.seed + entry.clip if entry.seed is None else entry.seed,
                prompt=params.prompt_of(entry.clip),
                attempt=entry.attempt,
            )
            for entry in job.clips
        ],
        attempts=attempts,
        consent=submitted.consent,
        video=job.video and VideoHash(**_hash_of(job.video).model_dump(), content_sha256=job.content_sha256),
    )
