"""The spans of one attempt: the attempt, its clips, and the stages in each."""

from __future__ import annotations

from contract.job import Stage
from contract.state import Job
from jobs.traces import NO_SPAN, Span, Traces

_OF_THE_JOB = (Stage.LOADING, Stage.MUXING)
"""Stages that belong to no clip."""


class AttemptTrace:
    """Follows an attempt. `stage` and `end` belong to the thread that renders; `storing` to any."""

    def __init__(self, traces: Traces, job: Job, worker: str) -> None:
        self._traces = traces
        submitted = job.submitted
        if job.attempt == 1:
            traces.start("wait", submitted.trace, submitted.at.timestamp()).end()
        self._attempt = traces.start("attempt", submitted.trace)
        self._attempt.note(job_id=job.id, attempt=job.attempt, worker=worker, model=submitted.checkpoint)
        self._clip: Span = NO_SPAN
        self._stage: Span = NO_SPAN
        self._place: tuple[Stage, int] | None = None
        self._clips: dict[int, str | None] = {}
        """The context of each clip, for what is done with it later."""

    def stage(self, stage: Stage, clip: int) -> None:
        """The attempt is in this stage of this clip now. The same may be told again."""
        before, self._place = self._place, (stage, clip)
        if before == self._place:
            return
        self._stage.end()
        if stage in _OF_THE_JOB:
            self._clip.end()
            self._clip = NO_SPAN
        elif before is None or before[0] in _OF_THE_JOB or before[1] != clip:
            self._clip.end()
            self._clip = self._traces.start("clip", self._attempt.context)
            self._clip.note(clip=clip)
            self._clips[clip] = self._clip.context
        above = self._attempt if stage in _OF_THE_JOB else self._clip
        self._stage = self._traces.start(str(stage), above.context)

    def storing(self, clip: int) -> Span:
        """A span for the storing of a clip, which goes on while the next one is rendered."""
        return self._traces.start("store", self._clips.get(clip) or self._attempt.context)

    def end(self, outcome: str, cause: str) -> None:
        """The attempt is over."""
        error = cause or None if outcome in ("failed", "interrupted") else None
        self._stage.end(error)
        self._clip.end(error)
        self._attempt.note(outcome=outcome)
        self._attempt.end(error)
