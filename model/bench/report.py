"""All figures of one run of `cointeract bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from contract.attention import AttentionReport
from contract.card import CheckpointDefaults
from contract.memory import MemoryMode
from model.bench.clip import ClipShape
from model.bench.forward import MEASURED_TIMESTEPS, ForwardFigures, measure_forward
from model.bench.official import OfficialFigures
from model.bench.parts import JobFigures, PartFigures, job_params, measure_job, measure_parts
from model.pipeline import CoInteractPipeline

Say = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True)
class Setup:
    """What was measured, and on what."""

    checkpoint: str
    device: str
    torch: str
    threads: int
    dtype: str
    memory_mode: MemoryMode
    attention: AttentionReport


@dataclass(frozen=True)
class BenchReport:
    setup: Setup
    forwards: tuple[ForwardFigures, ...]
    parts: tuple[PartFigures, ...]
    job: JobFigures | None
    official: OfficialFigures | None = None

    def as_json(self) -> dict[str, Any]:
        """Numbers, names and nothing else."""
        plain = asdict(self)
        plain["setup"]["attention"] = self.setup.attention.model_dump(mode="json")
        return plain


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    shapes: tuple[ClipShape, ...]
    rounds: int
    job_clips: int
    """0 leaves the job out."""
    job_steps: int
    defaults: CheckpointDefaults


def measure_all(pipeline: CoInteractPipeline, setup: Setup, plan: Plan, say: Say) -> BenchReport:
    """Forwards of all shapes; parts and job of the first."""
    first = plan.shapes[0]

    def forwards() -> Iterator[ForwardFigures]:
        for shape in plan.shapes:
            for timestep in MEASURED_TIMESTEPS:
                say(f"a forward at {shape.size}, t = {timestep:g}")
                yield measure_forward(pipeline, shape, timestep, plan.rounds)

    def parts() -> Iterator[PartFigures]:
        say("VAE and encoders")
        yield from measure_parts(pipeline, first, plan.rounds)

    def job() -> JobFigures | None:
        if not plan.job_clips:
            return None
        say(f"a job of {plan.job_clips} clips")
        params = job_params(first, plan.job_clips, plan.job_steps, plan.defaults)
        return measure_job(pipeline, first, params)

    return BenchReport(setup, tuple(forwards()), tuple(parts()), job())


def setup_of(pipeline: CoInteractPipeline, checkpoint: str, device: str, attention: AttentionReport) -> Setup:
    return Setup(
        checkpoint=checkpoint,
        device=device,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        dtype=str(pipeline.transformer.dtype).removeprefix("torch."),
        memory_mode=pipeline.streams.mode,
        attention=attention,
    )
