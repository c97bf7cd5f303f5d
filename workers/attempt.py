"""One attempt at a job: claim it, render it clip by clip, publish it.

The journal decides who has the job. Redis only makes things faster.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from redis.exceptions import RedisError

from contract.entries import ClipFinished, Failed, InterruptReason, JournalEntry, Started, Succeeded
from contract.job import JobError, JobState, Stage, utcnow
from contract.maker import Maker
from contract.memory import MemoryMode
from contract.settings import Settings
from contract.speed import Speed, Stopwatch, Work
from contract.state import Job
from contract.worker import LiveProgress, RunningJob
from jobs.artifacts import STORAGE_AWAY, ArtifactStore
from jobs.journal import JobNotFound, Journal, Outdated, UnreadableJob, verdict
from jobs.queue import JobQueue
from jobs.traces import Traces
from jobs.usage import SpentUsage, note_usage
from workers.attempt_trace import AttemptTrace
from workers.engines.engine import (
    ClipFiles,
    ClipStream,
    DeviceFailed,
    Engine,
    OutOfMemory,
    RenderedClip,
    RenderRequest,
)
from workers.job_files import JobFiles, Superseded
from workers.job_log import JobLogHandler
from workers.lost_attempts import announce_again
from workers.messages import ClipDone, Ended, Message, Progressed, Working
from workers.one_behind import OneBehind
from workers.provenance import Provenance
from workers.scratch import attempt_folder

log = logging.getLogger(__name__)

STORAGE_RETRY_S = 1.0

OUT_OF_MEMORY_ADVICE = (
    "The device ran out of memory. Ask for a smaller size, start the worker with offloading or a quantised "
    "checkpoint, or use a larger device."
)


class ShuttingDown(Exception):
    """This process was asked to stop."""


@dataclass
class Runner:
    """Renders jobs with the engine of this process, one at a time."""

    worker: str
    journal: Journal
    store: ArtifactStore
    queue: JobQueue
    settings: Settings
    engine: Engine
    tell: Callable[[Message], None]
    """Sends a message to the supervisor."""
    stopping: threading.Event
    provenance: Provenance
    maker: Maker | None = None
    traces: Traces = field(default_factory=Traces)
    broken: bool = field(default=False, init=False)
    """Whether only a fresh process can go on rendering."""
    speed: Speed | None = field(default=None, init=False)
    """As measured by this process; None before its first clip."""

    def render_next(self, checkpoint: str) -> None:
        """Render the next waiting job of `checkpoint`, if there is one. Each ticket calls this."""
        for waiting in self.queue.startable(checkpoint):
            if self.stopping.is_set():
                return
            if not self.may_work():
                log.warning("nothing is claimed: the worker is drained, or its lease is not renewed")
                return
            job = self._claim(waiting.id, checkpoint)
            if job is not None:
                _Attempt(self, job).run()
                return

    def may_work(self) -> bool:
        """Whether others count this worker as alive, else the reaper would take its job away again, and
        nobody drains it.
        """
        return self.queue.may_work(self.worker)

    def _claim(self, job_id: str, checkpoint: str) -> Job | None:
        job = None
        try:
            job = self.journal.read(job_id)
            if job.state is JobState.QUEUED and job.submitted.checkpoint == checkpoint:
                report = self.engine.attention
                started = Started(
                    at=utcnow(),
                    attempt=job.attempt + 1,
                    worker=self.worker,
                    attention=None if report is None else report.backend,
                    maker=self.maker,
                )
                job = self.journal.append(job, started)
            else:
                job = None
        except (JobNotFound, Outdated):
            job = None
        except ValueError as error:  # damaged, or written by another version: leave it alone
            self.store.passed_over.note("job", job_id, error)
            job = None
        except OSError as error:  # it goes on waiting; another worker may be luckier
            self.store.passed_over.note("job", job_id, error)
            return None
        # We or somebody else claimed it. If Redis is away, the reaper tidies up.
        with suppress(RedisError):
            self.queue.withdraw(job_id, checkpoint)
        return job


class _Attempt:
    """One attempt. `self.job` is the state after this attempt's own entries.

    A finished clip is encoded and stored in a thread while the next one is being rendered.
    """

    def __init__(self, runner: Runner, job: Job) -> None:
        self.runner = runner
        self.job = job
        self.appending = threading.Lock()
        """Held while an entry is in the journal but not yet in `self.job`."""
        self.stage = Stage.LOADING
        self.place = (len(job.clips), 0)
        """Clip and step that were reported last."""
        self.fall_back: MemoryMode | None = None
        """What the worker must go on in because the device's memory was too small."""
        self.done_at_start = len(job.clips)
        self.stopwatch = Stopwatch(job.submitted.params, runner.speed)
        self.stage_began_at = utcnow()
        self.clip_began: float | None = None
        """When work on the present clip began, by the monotonic clock."""
        self.unkept: deque[float] = deque()
        """Seconds of clips that are rendered but not yet in the journal."""
        self.about = {"job_id": job.id, "attempt": job.attempt}
        self.workdir = runner.store.scratch() / attempt_folder(job.id, job.attempt)
        self.files = JobFiles(runner.store, job.id, self.about, self._pause, self.workdir)
        self.log = JobLogHandler(runner.store, job.id, job.attempt)
        self.trace = AttemptTrace(runner.traces, job, runner.worker)

    def run(self) -> None:
        runner, job = self.runner, self.job
        request = job.submitted
        waited = max(0.0, (utcnow() - request.at).total_seconds()) if job.attempt == 1 else None
        runner.tell(
            Working(
                waited_s=waited,
                running=RunningJob(
                    job_id=job.id,
                    attempt=job.attempt,
                    owner=request.owner,
                    priority=request.priority,
                    cost=request.cost,
                    work=Work.of(request.params),
                    started_at=job.started_at or utcnow(),
                    progress=self._progress(*self.place),
                ),
            )
        )
        logging.getLogger().addHandler(self.log)
        log.info("attempt started behind clip %d", self.done_at_start, extra=self.about)
        workdir = self.workdir
        outcome, cause = "superseded", ""
        try:
            outcome, cause = self._render_or_record(workdir)
        finally:
            if outcome == "superseded":
                self._charge_broken_clip()
            # Not earlier: the exception that ended a render holds its tensors until it is handled.
            runner.engine.release()
            shutil.rmtree(workdir, ignore_errors=True)
            self._bill()
            logging.getLogger().removeHandler(self.log)
            self.log.save()
            self.trace.end(outcome, cause)
            runner.tell(Ended(outcome=outcome, cause=cause, stage=self.stage, fall_back=self.fall_back))

    def _render_or_record(
        self, workdir: Path
    ) -> tuple[Literal["succeeded", "failed", "interrupted", "superseded"], str]:
        """Render, and record a failure with its stage and cause. Returns the outcome and the cause."""
        reason: InterruptReason
        burns = True
        try:
            self._render(workdir)
            return "succeeded", ""
        except (Superseded, Outdated, JobNotFound) as why:
            log.info("attempt superseded: %s", why, extra=self.about)
            return "superseded", ""
        except ShuttingDown:
            reason, message, burns = "shutdown", "the worker was stopped", False
        except ValueError as error:
            log.warning("invalid input: %s", error, exc_info=True, extra=self.about)
            return self._record_failure("invalid_input", str(error))
        except OutOfMemory as error:
            self.runner.broken = True
            reason, (message, burns) = "out_of_memory", self._fall_back(error)
        except DeviceFailed as error:
            self.runner.broken = True
            reason, message = "error", f"the device failed: {error}"
        except Exception as error:
            log.exception("attempt failed while %s", self.stage, extra=self.about)
            reason, message = "error", f"{type(error).__name__}: {error}"
            burns = not self._is_storages_fault(error)
        log.warning(
            "attempt interrupted: %s: %s", reason, message, extra={**self.about, "stage": str(self.stage)}
        )
        entry = verdict(
            self.job,
            reason=reason,
            message=message,
            max_attempts=self.runner.settings.max_attempts,
            stage=self.stage,
            burns_attempt=burns,
            memory_mode=self.fall_back,
        )
        return self._record(entry, "failed" if isinstance(entry, Failed) else "interrupted", reason)

    def _is_storages_fault(self, error: Exception) -> bool:
        """Whether storage failed and not the job. If one file cannot be read although storage works, the job
        is at fault: every attempt would try to read it again.
        """
        if not isinstance(error, OSError) or error.errno not in STORAGE_AWAY:
            return False
        return error.errno != errno.EIO or not self.files.storage_works()

    def _fall_back(self, error: OutOfMemory) -> tuple[str, bool]:
        """Choose how the worker goes on; returns what to say and whether the attempt counts.

        It does not the first time that the job falls back: nobody could know that it needs more memory.
        """
        mode, self.fall_back = self.runner.engine.memory_mode, self.runner.engine.next_memory_mode
        if self.fall_back is None or self.job.memory_mode is not None:
            return f"{OUT_OF_MEMORY_ADVICE} ({error})", True
        said = f"The device ran out of memory in mode {mode}; the worker goes on in mode {self.fall_back}."
        return f"{said} ({error})", False

    def _record_failure(self, code: str, message: str) -> tuple[Literal["failed", "superseded"], str]:
        error = JobError(code=code, message=message, stage=self.stage)
        entry = Failed(at=utcnow(), attempt=self.job.attempt, error=error)
        outcome, cause = self._record(entry, "failed", code)
        return ("failed", cause) if outcome == "failed" else ("superseded", cause)

    def _record(
        self, entry: JournalEntry, outcome: Literal["failed", "interrupted"], cause: str
    ) -> tuple[Literal["failed", "interrupted", "superseded"], str]:
        try:
            self._append(entry)
        except (Superseded, Outdated, JobNotFound):
            return "superseded", ""
        except ShuttingDown:  # storage fails and we must end: the supervisor or the reaper writes it later
            return "interrupted", cause
        announce_again(self.runner.queue, self.job)
        return outcome, cause

    # Rendering

    def _render(self, workdir: Path) -> None:
        self.files.durably(partial(_make_empty, workdir))
        engine, params = self.runner.engine, self.job.submitted.params
        inputs = self.job.submitted.inputs
        is_unfinished = 0 < self.done_at_start < params.num_clips
        request = RenderRequest(
            params=params,
            person_image=self.files.local(inputs.person_image),
            audio=self.files.local(inputs.audio),
            product_image=self.files.local_or_none(inputs.product_image),
            pose_video=self.files.local_or_none(inputs.pose_video),
            first_clip=self.done_at_start,
            motion=self.files.local_or_none(self.job.clips[-1].motion if is_unfinished else None),
        )
        self._on_progress(Stage.LOADING, self.done_at_start, 0)
        self.clip_began = started = time.monotonic()
        if self.done_at_start < params.num_clips:
            started = self._render_clips(request, workdir)
        self._on_progress(Stage.MUXING, params.num_clips, 0)
        clips = [self.files.local(clip.video) for clip in self.job.clips]
        video, poster = workdir / "video.mp4", workdir / "poster.jpg"
        finished = self.files.durably(lambda: engine.finish(request, clips, video, poster))
        # Each attempt has file names of its own, so a stale attempt can never replace a published file.
        unsigned = self.files.durably(lambda: self.runner.provenance.sign(video, self.job, "video"))
        entry = Succeeded(
            at=utcnow(),
            attempt=self.job.attempt,
            content_sha256=unsigned,
            video=self.files.put(video, f"video-{self.job.attempt}.mp4", "video/mp4"),
            poster=self.files.put(poster, f"poster-{self.job.attempt}.jpg", "image/jpeg"),
            duration_s=finished.duration_s,
            gpu_seconds=time.monotonic() - started,
        )
        self._append(entry)
        if self.job.clips and not self.job.submitted.keep_motion:
            self.files.drop(self.job.clips[-1].motion)
        log.info("succeeded", extra=self.about)

    def _render_clips(self, request: RenderRequest, workdir: Path) -> float:
        """Render and keep the clips that are missing. Returns when the last one was rendered."""
        self.clip_began = started = time.monotonic()
        stream = self.runner.engine.stream(request)
        with OneBehind("storing", self._still_there) as storing:

            def on_progress(stage: Stage, clip: int, step: int) -> None:
                storing.check()
                self._on_progress(stage, clip, step)

            for clip in self.runner.engine.render(request, on_progress):
                seconds = time.monotonic() - started
                self.clip_began = time.monotonic()
                self.unkept.append(seconds)
                self.runner.speed = speed = self.stopwatch.clip_ends()
                storing.start(partial(self._keep_clip, clip, stream, workdir, seconds, speed))
                self.clip_began = started = time.monotonic()
        return started

    def _keep_clip(
        self, clip: RenderedClip, stream: ClipStream, workdir: Path, seconds: float, speed: Speed | None
    ) -> None:
        """Keep a finished clip, rendered in `seconds`, so that a later attempt can continue after it."""
        index, name = clip.index, f"{clip.index:04d}-{self.job.attempt}"
        span = self.trace.storing(index)
        files = ClipFiles(
            video=workdir / f"{index}.mp4",
            motion=workdir / f"{index}.motion",
            poster=workdir / f"{index}.jpg",
            router_map=workdir / f"{index}.map.mp4",
        )
        fragment, header = workdir / f"{index}.m4s", workdir / f"{index}.header"
        self.files.durably(partial(clip.save, files))
        self.files.durably(partial(stream.write, index, files.video, header, fragment))
        self.files.durably(partial(self.runner.provenance.sign, files.video, self.job, f"clip {index}"))
        before, put = self.job.clips[-1].motion if self.job.clips else None, self.files.put
        self._append(
            ClipFinished(
                at=utcnow(),
                attempt=self.job.attempt,
                clip=index,
                video=put(files.video, f"clip-{name}.mp4", "video/mp4"),
                motion=put(files.motion, f"motion-{name}.bin", "application/octet-stream"),
                poster=put(files.poster, f"poster-{name}.jpg", "image/jpeg"),
                fragment=put(fragment, f"fragment-{name}.m4s", "video/mp4"),
                router_map=put(files.router_map, f"router-map-{name}.mp4", "video/mp4")
                if files.router_map.exists()
                else None,
                stream_header=put(header, f"header-{name}.mp4", "video/mp4") if index == 0 else None,
                gpu_seconds=seconds,
            )
        )
        if not self.job.submitted.keep_motion:  # up to 75 MB that nobody needs now
            self.files.drop(before)
        span.end()
        self.unkept.popleft()
        self.runner.tell(ClipDone(seconds=seconds, speed=speed))
        log.info("clip %d finished in %.1f s", index, seconds, extra=self.about)
        self.log.save()

    def _on_progress(self, stage: Stage, clip: int, step: int) -> None:
        """Tell the supervisor. Raises if the journal has moved on or this process must end."""
        if stage is not self.stage:
            self.stage_began_at = utcnow()
            self.log.stage_begins(stage, clip)
        self.stage, self.place = stage, (clip, step)
        self.trace.stage(stage, clip)
        self.stopwatch.note(stage)
        self._still_there()
        self._check()

    def _still_there(self) -> None:
        """Tell the supervisor where the attempt is, so that it does not take it for stalled."""
        self.runner.tell(Progressed(progress=self._progress(*self.place)))

    def _check(self) -> None:
        with self.appending:
            self._catch_up()
        if self.runner.stopping.is_set():
            raise ShuttingDown

    def _catch_up(self) -> bool:
        """Take in what others wrote about the job, such as new metadata; returns whether they did.

        Raises Superseded if the job is not this attempt's any more.
        """
        newest = self._newest(self.job)
        if newest.state is not JobState.PROCESSING or newest.attempt != self.job.attempt:
            raise Superseded(f"the job is {newest.state}, attempt {newest.attempt}")
        is_new = newest.sequence != self.job.sequence
        self.job = newest
        return is_new

    def _pause(self) -> None:
        """Wait a moment for storage to come back. Raises as `_on_progress` does."""
        self._still_there()
        self._check()
        self.runner.stopping.wait(STORAGE_RETRY_S)

    def _newest(self, job: Job) -> Job:
        """What the journal says now."""
        try:
            return self.runner.journal.read(job.id, known=job)
        except JobNotFound:
            raise Superseded("the job was removed") from None
        except UnreadableJob as error:
            raise Superseded(f"its journal cannot be read any more: {error}") from error
        except OSError as error:
            if error.errno not in STORAGE_AWAY:
                raise
            return job  # unknown until storage is back, so the render goes on

    def _progress(self, clip: int, step: int) -> LiveProgress:
        params, speed = self.job.submitted.params, self.runner.speed
        work = Work.of(params, 1)
        return LiveProgress(
            share_of_steps=1.0 if speed is None else speed.share_of_steps(work),
            stage_began_at=self.stage_began_at,
            stage_s=None if speed is None else work.clips * speed.per_clip or None,
            attempt=self.job.attempt,
            stage=self.stage,
            clip=clip,
            num_clips=params.num_clips,
            step=step,
            num_steps=params.num_inference_steps,
        )

    # Storage

    def _append(self, entry: JournalEntry) -> None:
        def append() -> None:
            with self.appending:
                while True:
                    try:
                        self.job = self.runner.journal.append(self.job, entry)
                        return
                    except Outdated:
                        if not self._catch_up():
                            raise

        self.files.durably(append)

    def _charge_broken_clip(self) -> None:
        """Record the GPU time of a clip that the user broke off by a cancel or a deletion. Without this, a
        user could get round the limit by canceling just before the end of each clip.
        """
        if self.clip_began is None:
            return
        try:
            if self.runner.journal.read(self.job.id).state is not JobState.CANCELED:
                return  # this attempt is stale; another one goes on
        except JobNotFound:
            log.debug("the job is gone: it was deleted", extra=self.about)
        except (OSError, ValueError):
            return
        seconds = time.monotonic() - self.clip_began + sum(self.unkept)
        usage = SpentUsage(owner=self.job.submitted.owner, gpu_seconds=seconds, at=utcnow())
        with suppress(OSError):
            note_usage(self.runner.store, usage, self.job.id, self.job.attempt)

    def _bill(self) -> None:
        rendered = (len(self.job.clips) - self.done_at_start) / self.job.submitted.params.num_clips
        if rendered:
            with suppress(RedisError):
                self.runner.queue.bill(self.job, rendered)


def _make_empty(folder: Path) -> None:
    """Make a fresh folder, whatever an earlier process has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
