"""What the supervisor measures of an attempt while it follows the child's reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from contract.job import Stage
from contract.speed import Speed, Work
from contract.worker import LiveProgress, RunningJob
from workers.metrics import ESTIMATE_RATIO, QUEUE_WAIT, STAGE_SECONDS, STEP_SECONDS


@dataclass
class ObservedAttempt:
    """One attempt, from the report of its start to the report of its end."""

    place: LiveProgress
    began: float
    expected_s: float | None
    """How long it should take; None if the worker's speed was not known at its start."""
    clock: Callable[[], float]
    stage_began: float
    step_began: float

    @staticmethod
    def begin(
        running: RunningJob,
        waited_s: float | None,
        speed: Speed | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> ObservedAttempt:
        """`waited_s`: from the submit to this start; None if it is not the first attempt."""
        if waited_s is not None:
            QUEUE_WAIT.observe(waited_s)
        now, expected, place = clock(), None, running.progress
        if speed is not None and running.work is not None:
            share = (place.num_clips - place.clip) / max(1, place.num_clips)
            expected = speed.seconds(Work(running.work.steps * share, running.work.clips * share)) or None
        return ObservedAttempt(place, now, expected, clock, now, now)

    def goes_on(self, place: LiveProgress) -> None:
        """Take in where the attempt is now. The same place may be told again and again."""
        now, before = self.clock(), self.place
        if (place.stage, place.clip) != (before.stage, before.clip):
            self._stage_ends(now)
            self.step_began = now
        elif place.step > before.step and place.stage is Stage.DENOISING:
            self._steps_end(now, place.step - before.step)
        self.place = place

    def _steps_end(self, now: float, count: int) -> None:
        for _ in range(count):
            STEP_SECONDS.observe((now - self.step_began) / count)
        self.step_began = now

    def _stage_ends(self, now: float) -> None:
        STAGE_SECONDS.labels(self.place.stage).observe(now - self.stage_began)
        self.stage_began = now

    def ends(self, succeeded: bool) -> None:
        """Take in the end. Only what succeeded tells whether the estimate was right."""
        now = self.clock()
        self._stage_ends(now)
        if succeeded and self.expected_s is not None:
            ESTIMATE_RATIO.observe((now - self.began) / self.expected_s)
