"""Estimates: what a worker measures clip by clip says how long other jobs take, of any number of steps."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from contract.job import Stage
from contract.params import GenerationParams
from contract.speed import Speed, Stopwatch, Work
from contract.worker import LiveProgress

PER_STEP, PER_CLIP, PER_JOB = 0.31, 6.0, 4.0
"""Seconds of a pretended machine: of a step at 480 x 832, of the rest of a clip, of the rest of a job."""


def params(
    steps: int, clips: int, guidance: float = 5.0, size: tuple[int, int] = (480, 832)
) -> GenerationParams:
    return GenerationParams(
        prompts=("x",), negative_prompt="", width=size[0], height=size[1], num_inference_steps=steps,
        guidance_scale=guidance, flow_shift=5.0, product_scale=1.0, seed=0, num_clips=clips,
        num_frames=80 * clips,
    )  # fmt: skip


class Machine:
    """Renders on a clock of its own, a little unevenly."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._random = random.Random(seed)

    def _pass(self, seconds: float) -> None:
        self.now += seconds * self._random.uniform(0.97, 1.03)

    def render(self, job: GenerationParams, known: Speed | None) -> tuple[Speed | None, float]:
        """What was measured, and how long it took."""
        began, watch = self.now, Stopwatch(job, known, lambda: self.now)
        passes = 1 if job.guidance_scale == 1 else 2
        watch.note(Stage.LOADING)
        self._pass(PER_JOB)
        for _ in range(job.num_clips):
            for _ in range(job.num_inference_steps):
                watch.note(Stage.DENOISING)
                self._pass(PER_STEP * passes)
            watch.note(Stage.DECODING)
            self._pass(PER_CLIP)
            known = watch.clip_ends()
        return known, self.now - began


@pytest.mark.parametrize("seed", range(5))
def test_after_three_jobs_estimates_are_within_a_tenth_whatever_the_steps(seed: int) -> None:
    machine, speed = Machine(seed), None
    for steps, clips in ((1, 1), (4, 2), (20, 1)):
        speed, _ = machine.render(params(steps, clips), speed)
    assert speed is not None
    errors = []
    for steps, clips, guidance in ((1, 1, 5.0), (40, 3, 5.0), (8, 2, 1.0), (4, 5, 5.0), (60, 1, 5.0)):
        job = params(steps, clips, guidance)
        expected = speed.seconds(Work.of(job))
        speed, took = machine.render(job, speed)
        assert speed is not None
        errors.append(abs(expected - took) / took)
    assert sorted(errors)[len(errors) // 2] < 0.1
    assert max(errors) < 0.25


def test_a_larger_frame_costs_more_than_its_pixels() -> None:
    small, large = Work.of(params(1, 1)), Work.of(params(1, 1, size=(720, 1280)))
    assert large.clips / small.clips == pytest.approx(720 * 1280 / (480 * 832))
    # Counted on the real network (BENCHMARKS.md): 8.08 and 2.07 PFLOP a forward.
    assert large.steps / small.steps == pytest.approx(8.08 / 2.07, rel=0.05)


def test_each_clip_has_an_equal_share_of_the_work() -> None:
    job = params(4, 3)
    assert Work.of(job, 1).steps * 3 == pytest.approx(Work.of(job).steps)


def test_progress_goes_on_while_a_clip_is_decoded_and_never_goes_back() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)

    def at(stage: Stage, step: int = 0, after_s: float = 0.0, clip: int = 0) -> float:
        progress = LiveProgress(
            attempt=1, stage=stage, clip=clip, num_clips=2, step=step, num_steps=4,
            share_of_steps=0.25, stage_began_at=began, stage_s=10.0,
        )  # fmt: skip
        return progress.percent(began + timedelta(seconds=after_s))

    bar = [at(Stage.LOADING), at(Stage.ENCODING)]
    bar += [at(Stage.DENOISING, step) for step in range(5)]
    bar += [at(Stage.DECODING, 4, seconds) for seconds in (0, 1, 5, 9, 30)]
    bar += [at(Stage.ENCODING, clip=1), at(Stage.DENOISING, 4, clip=1), at(Stage.DECODING, 4, 5, clip=1)]
    bar += [at(Stage.MUXING)]
    assert bar == sorted(bar)
    decoding = bar[7:12]
    assert len(set(decoding)) == 5, "the bar stands still while a clip is decoded"
    assert bar[7] == pytest.approx(12.5)
    assert max(bar) == 99.0
