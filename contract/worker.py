"""What a worker tells about itself and about the job that it renders."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from contract.attention import AttentionReport
from contract.frozen import Frozen
from contract.job import Priority, Stage
from contract.memory import MemoryMode
from contract.speed import Speed, Work


class LiveProgress(Frozen):
    """Where a running attempt is. A hint kept in Redis: it may be missing or a moment old."""

    attempt: int
    stage: Stage
    clip: int = 0
    num_clips: int
    step: int = 0
    num_steps: int

    share_of_steps: float = Field(1.0, ge=0, le=1)
    """The part of a clip's time that its steps take, as it was measured."""
    stage_began_at: datetime | None = None
    stage_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """About how long the stage takes; None if that is not known."""

    def percent(self, now: datetime | None = None) -> float:
        """0–100 over the whole job, weighed by the time that steps and the rest of a clip take.

        Steps are counted. What is done of decoding is told by its time up to `now`, so that the bar goes on.
        """
        if self.stage in (Stage.MUXING, Stage.DONE):
            return 99.0
        within = 0.0
        if self.stage is Stage.DECODING:
            within = self.share_of_steps + (1 - self.share_of_steps) * self._stage_done(now)
        elif self.stage is Stage.DENOISING and self.num_steps:
            within = self.share_of_steps * self.step / self.num_steps
        return min(99.0, 100.0 * (self.clip + within) / max(1, self.num_clips))

    def _stage_done(self, now: datetime | None) -> float:
        if now is None or self.stage_began_at is None or self.stage_s is None:
            return 0.0
        return min(0.95, max(0.0, (now - self.stage_began_at).total_seconds() / self.stage_s))


class RunningJob(Frozen):
    """The attempt a worker is busy with. As long as a live worker names it, the attempt is not lost."""

    job_id: str
    attempt: int
    owner: str
    priority: Priority
    cost: float = Field(ge=0, allow_inf_nan=False)
    started_at: datetime
    progress: LiveProgress

    work: Work | None = None
    """The work of the whole job; None if its worker does not say."""

    def fraction_done(self, now: datetime | None = None) -> float:
        return self.progress.percent(now) / 100


class WorkerInfo(Frozen):
    """What a worker tells about itself with each heartbeat."""

    name: str
    checkpoint: str
    device: str
    memory_mode: MemoryMode | None = None
    """Where its weights lie. None while the model is being loaded."""
    ready: bool = False
    """False while the model is being loaded."""
    problem: str | None = None
    """Why it cannot work, as a sentence. It keeps trying."""
    running: RunningJob | None = None
    attention: AttentionReport | None = None
    """Its attention backend; None until the model is loaded."""
    speed: Speed | None = None
    """Measured, for estimates; None until the first clip is done."""
