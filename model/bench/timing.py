"""Seconds and peak memory of what runs on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spent:
    """Of one run: medians over a few, and the best."""

    seconds: float
    """On a GPU the device's own, else on the wall."""
    best_seconds: float
    cpu_seconds: float
    """Of this process, over all threads: the steadier figure on a CPU that others use, too."""
    best_cpu_seconds: float

    def on(self, device: torch.device) -> float:
        """What to reckon with."""
        return self.seconds if device.type == "cuda" else self.cpu_seconds

    def best_on(self, device: torch.device) -> float:
        return self.best_seconds if device.type == "cuda" else self.best_cpu_seconds


def spend(run: Callable[[], object], device: torch.device, rounds: int) -> Spent:
    """Run it once to warm up and then `rounds` times."""
    run()
    measured = [_once(run, device) for _ in range(rounds)]
    seconds, cpu = ([one[place] for one in measured] for place in (0, 1))
    return Spent(statistics.median(seconds), min(seconds), statistics.median(cpu), min(cpu))


def _once(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    cpu = time.process_time()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds = float(begin.elapsed_time(end)) / 1000
    else:
        wall = time.perf_counter()
        run()
        seconds = time.perf_counter() - wall
    return max(seconds, 1e-9), max(time.process_time() - cpu, 1e-9)


@dataclass
class Peak:
    """Filled in when the block that measures it ends."""

    bytes: int | None = None
    """None where the system does not say."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most memory that is in use while the block runs: of the GPU, or of this process."""
    peak = Peak()
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    yield peak
    peak.bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _process_peak()


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: then it is the peak since the start
        return


def _process_peak() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None
    )
