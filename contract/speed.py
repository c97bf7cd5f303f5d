"""How long a video takes: the work in it, and the speed of a worker at each kind of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from contract.frozen import Frozen
from contract.job import Stage
from contract.params import GenerationParams

TOKENS_PER_PATCH: Final = 23.5
"""Tokens of a forward pass per 16 × 16 pixels: target, person, product, packed motion (docs/weights.md)."""

EVEN_TOKENS: Final = 31_800
"""Number of tokens at which attention is as much work as the matrix products (counted: BENCHMARKS.md)."""

NEWEST_WEIGHS: Final = 0.5
"""The weight of the newest clip in a speed that has been measured before."""


@dataclass(frozen=True)
class Work:
    """The work in a video, or in the rest of one."""

    steps: float
    """Forward passes of the network, weighted by their size."""
    clips: float
    """Clips to encode and decode, weighted by their megapixels."""

    @staticmethod
    def of(params: GenerationParams, num_clips: float | None = None) -> Work:
        """The work in `num_clips` clips; in all clips by default."""
        clips = params.num_clips if num_clips is None else num_clips
        one = Work.of_clip(params.width, params.height, params.num_inference_steps, params.guidance_scale)
        return Work(clips * one.steps, clips * one.clips)

    @staticmethod
    def of_clip(width: int, height: int, steps: int, guidance_scale: float) -> Work:
        """The work of one clip of that size in pixels."""
        tokens = TOKENS_PER_PATCH * (width / 16) * (height / 16)
        forwards = steps * (1 if guidance_scale == 1 else 2)
        size = tokens * (1 + tokens / EVEN_TOKENS) / 1e4
        return Work(forwards * size, width * height / 1e6)


class Speed(Frozen):
    """Seconds per unit of each kind of work, as a worker measured them."""

    per_step: float = Field(ge=0, allow_inf_nan=False)
    per_clip: float = Field(ge=0, allow_inf_nan=False)
    per_job: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Seconds per job apart from its clips: reading inputs, encoding prompts and speech, joining."""

    def seconds(self, work: Work) -> float:
        """How long the work takes."""
        return work.steps * self.per_step + work.clips * self.per_clip + self.per_job

    def share_of_steps(self, work: Work) -> float:
        """The part of a clip's time that its steps take, 0 to 1."""
        steps, rest = work.steps * self.per_step, work.clips * self.per_clip
        return steps / (steps + rest) if steps + rest > 0 else 1.0


@dataclass
class Stopwatch:
    """Measures the speed of an attempt, clip by clip, from the stages that it reports."""

    params: GenerationParams
    known: Speed | None
    """The speed measured so far; None before the first measurement."""
    clock: Callable[[], float] = time.monotonic
    _clip_began: float | None = None
    _steps_began: float | None = None
    _steps_ended: float | None = None
    _before_clips: float = 0.0

    def note(self, stage: Stage) -> None:
        """Note that the attempt has reported `stage`."""
        now = self.clock()
        if self._clip_began is None:
            self._clip_began = now
        if stage is Stage.DENOISING and self._steps_began is None:
            self._steps_began = now
        if stage is Stage.DECODING and self._steps_ended is None:
            self._steps_ended = now

    def clip_ends(self) -> Speed | None:
        """The speed after one more clip.

        A clip whose steps were not reported leaves the speed as it was, which may be None.
        """
        now, began, first, last = self.clock(), self._clip_began, self._steps_began, self._steps_ended
        self._clip_began, self._steps_began, self._steps_ended = now, None, None
        if began is None or first is None or last is None:
            return self.known
        is_first = self._before_clips == 0.0
        if is_first:  # a job does the work before its first step only once
            self._before_clips = max(first - began, 1e-9)
            began = first
        work, steps = Work.of(self.params, 1), last - first
        measured = Speed(
            per_step=steps / work.steps,
            per_clip=max(0.0, now - began - steps) / work.clips,
            per_job=self._before_clips if is_first or self.known is None else self.known.per_job,
        )
        self.known = measured if self.known is None else _blend(self.known, measured)
        return self.known


def _blend(old: Speed, new: Speed) -> Speed:
    def between(before: float, now: float) -> float:
        return (1 - NEWEST_WEIGHS) * before + NEWEST_WEIGHS * now

    return Speed(
        per_step=between(old.per_step, new.per_step),
        per_clip=between(old.per_clip, new.per_clip),
        per_job=between(old.per_job, new.per_job),
    )
