"""The fastest attention backend of a device, measured on the shapes it will have to compute."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from contract.attention import AttentionBackend, AttentionReport
from model.network.attention import CoInteractAttnProcessor
from model.network.attention_backends import dispatch, use_backend
from model.transformer import CoInteractTransformer3DModel

logger = logging.getLogger(__name__)

# In order of preference among equals. Whatever fetches code from elsewhere runs only when it is asked for.
CANDIDATES = (
    AttentionBackend.TORCH,
    AttentionBackend.FLASH_3,
    AttentionBackend.CUDNN,
    AttentionBackend.FLASH_2,
    AttentionBackend.TORCH_FLASH,
    AttentionBackend.TORCH_EFFICIENT,
    AttentionBackend.TORCH_MATH,
)
CLEARLY_FASTER = 1.03
"""A backend is chosen over one before it in that order only if it is so many times as fast."""

HEADS = 4
"""Heads that are measured. Each is computed on its own, and a few fill a device at any served size."""

MOST_SCORES = 2**28
"""Most scores per head for which writing them all to memory is tried. 4 heads then take 2 GB in bfloat16."""

MOST_CPU_TOKENS = 2048
REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """One backend on one shape."""

    backend: AttentionBackend
    seconds: float | None
    """Seconds for all heads of one layer; None if the backend cannot be used."""
    why_not: str = ""


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention of one layer."""

    tokens: int
    heads: int
    head_dim: int

    @property
    def flop(self) -> int:
        return 4 * self.tokens**2 * self.heads * self.head_dim


@dataclass(frozen=True)
class AttentionChoice:
    """The chosen backend, and those it was compared with."""

    backend: AttentionBackend
    shape: AttentionShape
    measured: tuple[Measured, ...]

    def report(self) -> AttentionReport:
        """The choice as a worker reports it."""
        rates = {
            found.backend: round(self.shape.flop / found.seconds / 1e12, 4)
            for found in self.measured
            if found.seconds is not None
        }
        return AttentionReport(backend=self.backend, tokens=self.shape.tokens, teraflops=rates)


@torch.no_grad()
def measure(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> tuple[Measured, ...]:
    """Every candidate on `shape`, with few heads and, on a CPU, not all tokens; seconds are scaled up."""
    tokens = shape.tokens if device.type == "cuda" else min(shape.tokens, MOST_CPU_TOKENS)
    heads = min(shape.heads, HEADS)
    part = AttentionShape(tokens, heads, shape.head_dim)
    states = [
        torch.randn(1, tokens, heads, shape.head_dim, device=device, dtype=dtype)
        for _ in ("queries", "keys", "values")
    ]
    found = []
    for backend in CANDIDATES:
        if backend is AttentionBackend.TORCH_MATH and tokens**2 > MOST_SCORES:
            found.append(Measured(backend, None, "its scores would take too much memory"))
            continue
        try:
            processor = _processor(backend)
            seconds = _seconds(partial(processor.attend, *states), device)
        except (RuntimeError, ValueError, ImportError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            found.append(Measured(backend, None, lines[0]))
        else:
            found.append(Measured(backend, seconds * shape.flop / part.flop))
    return tuple(found)


def _processor(backend: AttentionBackend) -> CoInteractAttnProcessor:
    processor, way = CoInteractAttnProcessor(), dispatch(backend, strict=True)
    processor._attention_backend, processor.torch_kernels = way.name, way.torch_kernels
    return processor


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs, after one that warms up."""
    with warnings.catch_warnings():  # torch explains at length why it cannot use a kernel
        warnings.simplefilter("ignore")
        run()
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)) / 1000)
        else:
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
    return max(min(times), 1e-9)


def fastest(measured: tuple[Measured, ...], device: torch.device) -> AttentionBackend:
    """The backend to choose.

    On a CPU that is always torch's own. Others can be faster on a few tokens, but where processes share cores
    the measurements vary, and a job that continues in another process must continue with the same bits.
    """
    best = measured[0]
    for found in measured if device.type == "cuda" else ():
        if found.seconds is not None and (
            best.seconds is None or found.seconds * CLEARLY_FASTER < best.seconds
        ):
            best = found
    return best.backend


def choose_attention(
    transformer: CoInteractTransformer3DModel,
    wanted: AttentionBackend,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionChoice:
    """Set the network's attention backend for clips of `tokens` tokens: the wanted one, or the fastest.

    Raises:
        RuntimeError: the wanted backend's package is missing.
    """
    config = transformer.config
    shape = AttentionShape(tokens, config.num_attention_heads, config.attention_head_dim)
    measured = measure(shape, device, dtype)
    backend = fastest(measured, device) if wanted is AttentionBackend.AUTO else wanted
    use_backend(transformer, backend)
    choice = AttentionChoice(backend, shape, measured)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in choice.report().teraflops.items())
    logger.info("attention of %d tokens on %s; measured TFLOP/s: %s", tokens, backend, rates)
    return choice
