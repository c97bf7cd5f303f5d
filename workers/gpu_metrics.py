"""Memory and use of the machine's GPUs for Prometheus, as the driver's own `nvidia-smi` tells them.

The supervisor, which answers scrapes, loads no CUDA. The tool is asked once per
scrape, and not between scrapes.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from workers.metrics import OF_WORKER

log = logging.getLogger(__name__)

QUESTION: Final = (
    "--query-gpu=index,memory.used,memory.total,utilization.gpu",
    "--format=csv,noheader,nounits",
)
PATIENCE_S: Final = 5.0
MEBIBYTE: Final = 2**20


def families(answer: str) -> Iterator[GaugeMetricFamily]:
    """The metrics in an answer to `QUESTION`. What a GPU does not tell ("[N/A]") is left out."""
    used = GaugeMetricFamily("cointeract_gpu_memory_used_bytes", "Memory in use on a GPU.", labels=["gpu"])
    total = GaugeMetricFamily("cointeract_gpu_memory_total_bytes", "Memory of a GPU.", labels=["gpu"])
    busy = GaugeMetricFamily(
        "cointeract_gpu_utilisation_ratio", "Share of the last moments in which a GPU worked.", labels=["gpu"]
    )
    for line in answer.splitlines():
        gpu, *told = (part.strip() for part in line.split(","))
        if len(told) != 3:
            continue
        for family, text, unit in zip((used, total, busy), told, (MEBIBYTE, MEBIBYTE, 0.01), strict=True):
            if text.isdecimal():
                family.add_metric([gpu], int(text) * unit)
    yield from (used, total, busy)


class GpuCollector(Collector):
    """Asks at each scrape."""

    def __init__(self, command: str) -> None:
        self._command = command

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Nothing if the driver does not answer."""
        try:
            done = subprocess.run(
                [self._command, *QUESTION], capture_output=True, text=True, timeout=PATIENCE_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("nvidia-smi does not answer: %s", error)
            return []
        return families(done.stdout)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Their names, so that registering asks nothing yet."""
        return families("")


def show_gpus(command: str) -> None:
    """Add the GPUs to what this process's /metrics shows."""
    OF_WORKER.register(GpuCollector(command))
