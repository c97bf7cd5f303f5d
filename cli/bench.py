"""`cointeract bench` and `cointeract profile`: the networks as a worker loads them, measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from contract.card import CheckpointCard
from contract.request import fields_of
from contract.resolve import frame_size
from deploy.samples import BUNDLED_CHECKPOINT
from deploy.stack import StackError
from deploy.up import checkpoint_card
from model.bench.clip import ClipShape
from model.bench.forward import ForwardFigures
from model.bench.official import Compared, OfficialFigures, compare
from model.bench.official_code import OfficialCode, OfficialCodeMissing
from model.bench.parts import PROMPT, JobFigures, job_params
from model.bench.report import BenchReport, Plan, measure_all, setup_of
from model.bench.trace import trace_clip, trace_forward
from workers.engines.pipeline import PipelineEngine


@dataclass(frozen=True)
class BenchOptions:
    checkpoint: Path | None
    device: str
    sizes: tuple[str, ...]
    rounds: int
    clips: int
    steps: int
    official: Path | None


@dataclass(frozen=True)
class ProfileOptions:
    checkpoint: Path | None
    device: str
    size: str | None
    output: Path
    timestep: float | None
    """Of the forward; None for a whole clip."""
    steps: int


def run_bench(options: BenchOptions, say: Callable[[str], None]) -> BenchReport:
    """Measure everything. Raises StackError, FieldError."""
    folder, card, device = _what(options.checkpoint, options.device)
    shapes = tuple(_shape(size, card) for size in options.sizes or card.sizes)
    try:
        code = None if options.official is None else OfficialCode(options.official)
    except OfficialCodeMissing as error:
        raise StackError(f"--official: {error}.") from error
    engine = PipelineEngine(folder, device)
    setup = setup_of(engine.pipeline, card.name, engine.device_name, engine.attention)
    plan = Plan(shapes, options.rounds, options.clips, options.steps, card.defaults)
    report = measure_all(engine.pipeline, setup, plan, say)
    return report if code is None else replace(report, official=compare(code, options.rounds, say))


def run_profile(options: ProfileOptions) -> None:
    """Write the trace. Raises StackError, FieldError."""
    folder, card, device = _what(options.checkpoint, options.device)
    shape = _shape(options.size or card.sizes[0], card)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = PipelineEngine(folder, device).pipeline
    if options.timestep is None:
        params = job_params(shape, 1, options.steps, card.defaults)
        trace_clip(pipeline, shape, params, options.output)
    else:
        trace_forward(pipeline, shape, options.timestep, options.output)


def _what(checkpoint: Path | None, device: str) -> tuple[Path, CheckpointCard, str]:
    folder = checkpoint or BUNDLED_CHECKPOINT
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return folder, checkpoint_card(folder), device


def _shape(size: str, card: CheckpointCard) -> ClipShape:
    width, height = frame_size(fields_of({"prompt": [PROMPT], "size": size}), card)
    return ClipShape(width, height, card.pose)


def as_text(report: BenchReport) -> str:
    """The report for programs."""
    return json.dumps(report.as_json(), indent=2)


def show(report: BenchReport) -> str:
    """The report for people, in Markdown."""
    setup, attention = report.setup, report.setup.attention
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in attention.teraflops.items())
    parts = [
        f"{setup.checkpoint} on {setup.device}, {setup.threads} threads, torch {setup.torch}, {setup.dtype}, "
        f"{setup.memory_mode}. Attention on {attention.backend}; measured for {attention.tokens} tokens, "
        f"TFLOP/s: {rates}.",
        _table(
            ["one forward", *(f"{one.size}, t = {one.timestep:g}" for one in report.forwards)],
            _forwards(report),
        ),
        _table(["for a clip", "seconds (best)", "CPU seconds", "peak memory"], _parts(report)),
    ]
    if report.job is not None:
        parts.append(_table(_job_heading(report.job), _job(report.job)))
    if report.official is not None:
        headings = ["CPU seconds", "ours", "official", "ours / official", "round by round", "difference"]
        parts.append(_table(headings, _official(report.official)))
        parts.append(_table(["stage of the job", *headings[1:4]], _stages(report.official)))
    return "\n\n".join(parts)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _forwards(report: BenchReport) -> Iterator[list[str]]:
    def row(name: str, of: Callable[[ForwardFigures], str]) -> list[str]:
        return [name, *map(of, report.forwards)]

    yield row("tokens", lambda one: f"{one.tokens:,}")
    yield row("seconds (best)", lambda one: f"{one.spent.seconds:.3g} ({one.spent.best_seconds:.3g})")
    yield row("CPU seconds", lambda one: f"{one.spent.cpu_seconds:.3g}")
    yield row("TFLOP of matrix products", lambda one: f"{one.matrix_flop / 1e12:.4g}")
    yield row("TFLOP of attention", lambda one: f"{one.attention_flop / 1e12:.4g}")
    yield row("TFLOP/s", lambda one: f"{one.teraflops:.3g}")
    yield row("products alone, TFLOP/s", lambda one: f"{one.matrix_teraflops:.3g}")
    yield row("attention alone, TFLOP/s", lambda one: f"{one.attention_teraflops:.3g}")
    yield row("floor: both alone, seconds", lambda one: f"{one.floor_seconds:.3g}")
    yield row("share of the floor", lambda one: f"{one.floor_share:.0%}")
    yield row("launches, counted", lambda one: f"{one.launches:,}")
    yield row("elementwise traffic, counted", lambda one: _bytes(one.elementwise_bytes))
    yield row("peak memory", lambda one: _bytes(one.peak_bytes))


def _parts(report: BenchReport) -> Iterator[list[str]]:
    for part in report.parts:
        spent = part.spent
        seconds = f"{spent.seconds:.3g} ({spent.best_seconds:.3g})"
        yield [part.name, seconds, f"{spent.cpu_seconds:.3g}", _bytes(part.peak_bytes)]


def _job_heading(job: JobFigures) -> list[str]:
    guided = ", guided" if job.guided else ""
    return [f"a job at {job.size}, clips: {job.clips}, steps: {job.steps}{guided}", ""]


def _job(job: JobFigures) -> Iterator[list[str]]:
    yield ["seconds", f"{job.seconds:.3g}"]
    yield ["CPU seconds", f"{job.cpu_seconds:.3g}"]
    for name, seconds in job.stages.items():
        yield [f"of these {name}", f"{seconds:.3g}"]
    yield ["peak memory", _bytes(job.peak_bytes)]


def _official(figures: OfficialFigures) -> Iterator[list[str]]:
    def row(one: Compared, difference: str) -> list[str]:
        by_round = ", ".join(f"{ratio:.2f}" for ratio in one.ratios)
        return [one.name, f"{one.ours:.3g}", f"{one.official:.3g}", f"{one.ratio:.2f}", by_round, difference]

    for forward in figures.forwards:
        yield row(forward, f"{forward.difference:.1e} of the largest value")
    yield row(figures.job, f"{figures.job.difference:.0f} of 255 levels")


def _stages(figures: OfficialFigures) -> Iterator[list[str]]:
    for name, (ours, official) in figures.stages.items():
        yield [name, f"{ours:.3g}", f"{official:.3g}", f"{ours / official:.2f}" if official else ""]


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
