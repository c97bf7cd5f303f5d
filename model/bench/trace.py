"""A profiler's trace of one forward or one clip, to open in Perfetto or Chrome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from contract.params import GenerationParams
from model.bench.clip import ClipShape
from model.bench.forward import ready_forward
from model.bench.parts import job_inputs
from model.pipeline import CoInteractPipeline


def trace_forward(pipeline: CoInteractPipeline, shape: ClipShape, timestep: float, to: Path) -> None:
    """Write the trace of one forward, its layers named, after one that warms up."""
    forward = ready_forward(pipeline, shape)
    forward(timestep)
    _trace(pipeline, partial(forward, timestep), to)


def trace_clip(pipeline: CoInteractPipeline, shape: ClipShape, params: GenerationParams, to: Path) -> None:
    """Write the trace of the first clip of `params`, from inputs to frames."""
    inputs = job_inputs(shape, params)
    _trace(pipeline, lambda: next(pipeline.generate_clips(inputs, params)), to)


def _trace(pipeline: CoInteractPipeline, run: Callable[[], object], to: Path) -> None:
    on_gpu = pipeline.vae.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler, _named_blocks(list(pipeline.transformer.blocks)):
        run()
        if on_gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(to))


@contextmanager
def _named_blocks(blocks: list[nn.Module]) -> Iterator[None]:
    """Each call of a block is a span of the trace."""
    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            span = _Span(f"block {number}")
            for handle in (
                block.register_forward_pre_hook(span.begin, prepend=True),
                block.register_forward_hook(span.end, always_call=True),
            ):
                hooks.callback(handle.remove)
        yield


class _Span:
    """One at a time, of a name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open = ExitStack()

    def begin(self, *_: object) -> None:
        self._open.enter_context(record_function(self._name))

    def end(self, *_: object) -> None:
        self._open.close()
