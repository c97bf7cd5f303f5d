"""What a worker says about itself and about the job that it renders."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from contract.attention import AttentionReport
from contract.frozen import Frozen
from contract.job import Priority, Stage


class LiveProgress(Frozen):
    """Where a running attempt is. A hint kept in Redis: it may be missing or a moment old."""

    attempt: int
    stage: Stage
    clip: int = 0
    num_clips: int
    step: int = 0
    num_steps: int

    def percent(self) -> float:
        """0–100 over the whole job. Denoising is nearly all of the work, so it alone moves the bar within a
        clip.
        """
        if self.stage in (Stage.MUXING, Stage.DONE):
            return 99.0
        within = (
            1.0 if self.stage is Stage.DECODING else self.step / self.num_steps if self.num_steps else 0.0
        )
        return min(99.0, 100.0 * (self.clip + within) / max(1, self.num_clips))


class RunningJob(Frozen):
    """The attempt a worker is busy with. As long as a live worker names it, the attempt is not lost."""

    job_id: str
    attempt: int
    owner: str
    priority: Priority
    cost: float = Field(ge=0, allow_inf_nan=False)
    started_at: datetime
    progress: LiveProgress

    def fraction_done(self) -> float:
        return self.progress.percent() / 100


class WorkerInfo(Frozen):
    """What a worker says about itself with each heartbeat."""

    name: str
    checkpoint: str
    device: str
    ready: bool = False
    """False while the model is being loaded."""
    problem: str | None = None
    """What keeps it from working, as a sentence; it tries again and again."""
    running: RunningJob | None = None
    attention: AttentionReport | None = None
    """What its attention runs on; None until the model is loaded."""
    seconds_per_cost: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Measured speed (seconds per unit of `Submitted.cost`), for estimates; None until the first clip is
    done.
    """
