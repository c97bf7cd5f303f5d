"""The API's views of jobs and checkpoints, made from journals, cards and the hints in Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from contract.card import CheckpointCard
from contract.choices import Preset
from contract.job import JobState, Stage, utcnow
from contract.params import GenerationParams
from contract.presets import preset_defaults, preset_steps
from contract.request import FILE_FIELDS
from contract.sampling import noise_levels
from contract.speed import Work
from contract.state import Job
from contract.worker import LiveProgress
from jobs.scheduling import WaitingJob
from server.hints import Hints
from server.schemas import (
    CheckpointView,
    FileUrls,
    JobErrorView,
    JobUrls,
    JobView,
    ModelView,
    ParamsView,
    PresetView,
    SpeechView,
    Usage,
)


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def clip_path(job_id: str, clip: int) -> str:
    return f"{job_path(job_id)}/clips/{clip}"


def file_urls(job: Job, link: Callable[[str], str]) -> FileUrls:
    """The files that a job has so far; `link` makes a URL of a path."""
    path, clips = job_path(job.id), [clip_path(job.id, entry.clip) for entry in job.clips]
    is_playable = bool(job.clips) and job.clips[0].stream_header is not None
    inputs = [field for field in FILE_FIELDS if getattr(job.submitted.inputs, field) is not None]
    return FileUrls(
        video=link(f"{path}/video") if job.video is not None else None,
        clips=[link(clip) for clip in clips],
        posters=[link(f"{clip}/poster") for clip in clips],
        router_maps=[
            None if entry.router_map is None else link(f"{clip}/router_map")
            for clip, entry in zip(clips, job.clips, strict=True)
        ],
        thumbnail=link(f"{path}/thumbnail"),
        stream=link(f"{path}/stream.m3u8") if is_playable else None,
        preview=link(f"{path}/preview.mp4") if is_playable or job.video is not None else None,
        inputs={field: link(f"{path}/inputs/{field}") for field in inputs},
    )


def params_view(params: GenerationParams) -> ParamsView:
    return ParamsView(**params.model_dump(), size=f"{params.width}x{params.height}")


def _progress(job: Job, live: LiveProgress | None) -> LiveProgress:
    """The job's progress, as its worker reports it, or else as the journal has it."""
    params = job.submitted.params
    if job.state is JobState.PROCESSING and live is not None and live.attempt == job.attempt:
        return live
    stage = Stage.QUEUED
    if job.state is JobState.PROCESSING:
        stage = Stage.LOADING
    elif job.state.is_terminal:
        ended = Stage.CANCELED if job.state is JobState.CANCELED else Stage.DONE
        stage = job.error.stage if job.error is not None else ended
    return LiveProgress(
        attempt=job.attempt,
        stage=stage,
        clip=min(len(job.clips), params.num_clips),
        num_clips=params.num_clips,
        step=0,
        num_steps=params.num_inference_steps,
    )


def _percent(job: Job, progress: LiveProgress) -> float:
    if job.state is JobState.SUCCEEDED:
        return 100.0
    finished = 100.0 * len(job.clips) / max(1, job.submitted.params.num_clips)
    if job.state.is_terminal:
        return round(min(finished, 99.0), 2)
    # Never less than the finished clips, whatever a late hint says.
    live = progress.percent(utcnow()) if job.state is JobState.PROCESSING else 0.0
    return round(min(99.0, max(finished, live)), 2)


def estimates(
    hints: Hints, checkpoint: str, job_id: str, work: Work, newcomer: WaitingJob | None = None
) -> tuple[int | None, datetime | None, datetime | None]:
    """Place in the queue, start and finish, as far as they are known, as if `newcomer` were queued last."""
    snapshot = hints.snapshot(checkpoint)
    if snapshot is None:
        return None, None, None
    known = snapshot.position(job_id)
    if snapshot.total is not None and known is None:
        place = snapshot.total + 1 if newcomer is not None else hints.place(job_id, checkpoint)
        if place is not None:
            return place, *(snapshot.estimate_beyond(place, work) or (None, None))
    if newcomer is not None:
        snapshot = replace(snapshot, waiting=[*snapshot.waiting, newcomer])
    start, finish = snapshot.estimate(job_id) or (None, None)
    return snapshot.position(job_id), start, finish


def job_view(job: Job, hints: Hints | None, base_url: str = "") -> JobView:
    """The job as a client sees it; without `hints`, only what the journal says."""
    submitted, params, path = job.submitted, job.submitted.params, base_url + job_path(job.id)
    live = hints.progress(job.id) if hints is not None and job.state is JobState.PROCESSING else None
    progress = _progress(job, live)
    position, start, finish = None, None, None
    if hints is not None and not job.state.is_terminal:
        left = Work.of(params, params.num_clips - len(job.clips))
        position, start, finish = estimates(hints, submitted.checkpoint, job.id, left)
    expires = job.completed_at + timedelta(seconds=submitted.retention_s) if job.completed_at else None
    error = None
    if job.error is not None:
        error = JobErrorView(code=job.error.code, message=job.error.message, stage=job.error.stage)
    return JobView(
        id=job.id,
        status=job.state,
        progress=_percent(job, progress),
        stage=progress.stage,
        clip=progress.clip,
        num_clips=params.num_clips,
        step=progress.step,
        num_steps=params.num_inference_steps,
        queue_position=position if job.state is JobState.QUEUED else None,
        estimated_start_at=start if job.state is JobState.QUEUED else None,
        estimated_finish_at=finish,
        created_at=submitted.at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        cancel_at=job.cancel_at,
        cancel_reason=job.cancel_reason,
        expires_at=expires,
        seed=params.seed,
        model=submitted.checkpoint,
        checkpoint=CheckpointView(name=submitted.checkpoint, trained=submitted.trained),
        params=params_view(params),
        exact=params.preset.is_exact,
        priority=submitted.priority,
        metadata=submitted.metadata,
        parent=submitted.parent,
        attempts=job.attempt,
        attention=job.attention,
        memory_mode=job.memory_mode,
        duration_s=job.duration_s,
        urls=JobUrls(
            self=path,
            cancel=f"{path}/cancel",
            events=f"{path}/events",
            **dict(file_urls(job, lambda of_file: base_url + of_file)),
        ),
        error=error,
        speech=submitted.speech and SpeechView(**submitted.speech.model_dump()),
        warnings=list(submitted.warnings),
        usage=Usage(gpu_seconds=round(job.gpu_seconds, 3)),
    )


def preset_view(card: CheckpointCard, preset: Preset) -> PresetView:
    """A preset at the checkpoint's default settings."""
    settings = preset_defaults(card, preset)
    levels = noise_levels(settings.num_inference_steps, settings.flow_shift)
    computed = preset_steps(card, preset, levels)
    calibration = card.calibration.get(preset)
    return PresetView(
        id=preset,
        exact=preset.is_exact,
        num_inference_steps=len(levels),
        num_computed_steps=len(levels) if computed is None else len(computed),
        psnr_db=None if calibration is None else calibration.psnr_db,
    )


def model_view(card: CheckpointCard, default: bool) -> ModelView:
    """A checkpoint as a client sees it. `default` says whether it serves requests that name none."""
    return ModelView(
        id=card.name,
        trained=card.trained,
        default=default,
        sizes=list(card.sizes),
        min_side=card.min_side,
        max_pixels=card.max_pixels,
        fps=card.fps,
        frames_per_clip=card.frames_per_clip,
        pose=card.pose,
        defaults=card.defaults.model_dump(),
        presets=[preset_view(card, preset) for preset in card.presets],
        license=card.license,
        note=card.note,
    )
