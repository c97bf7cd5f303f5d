"""What workers and the reaper count, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from contract.attention import AttentionReport
from contract.memory import MemoryMode

# Each kind of process shows its own, else a worker would say 0 of what only the reaper knows.
OF_WORKER: Final = CollectorRegistry()
OF_REAPER: Final = CollectorRegistry()
for _registry in (OF_WORKER, OF_REAPER):
    ProcessCollector(registry=_registry)

# Of a worker

ATTEMPTS = Counter(
    "cointeract_attempts_total",
    "Attempts by how they ended.",
    ["outcome", "stage", "cause"],
    registry=OF_WORKER,
)
CHILD_DEATHS = Counter(
    "cointeract_child_deaths_total", "Times a worker's child had to be replaced.", registry=OF_WORKER
)
MEMORY_FALLS = Counter(
    "cointeract_memory_falls_total",
    "Times a worker ran out of device memory and went on in mode.",
    ["mode"],
    registry=OF_WORKER,
)
for _mode in MemoryMode:  # a rise from nothing to 1 is none for Prometheus
    MEMORY_FALLS.labels(_mode)
CLIP_SECONDS = Histogram(
    "cointeract_clip_seconds",
    "Time to render one clip.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 2400, 4800),
    registry=OF_WORKER,
)
QUEUE_WAIT = Histogram(
    "cointeract_queue_wait_seconds",
    "From the submit of a job to the start of its first attempt.",
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400),
    registry=OF_WORKER,
)
STAGE_SECONDS = Histogram(
    "cointeract_stage_seconds",
    "Time in each stage of an attempt; each clip goes through its stages once.",
    ["stage"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 2400, 4800),
    registry=OF_WORKER,
)
STEP_SECONDS = Histogram(
    "cointeract_step_seconds",
    "Time of one denoising step.",
    buckets=(0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120),
    registry=OF_WORKER,
)
ESTIMATE_RATIO = Histogram(
    "cointeract_estimate_ratio",
    "Time that a finished attempt took, divided by what was expected at its start.",
    buckets=(0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0),
    registry=OF_WORKER,
)
ATTENTION = Gauge(
    "cointeract_attention_info",
    "1 for the kernel that this worker's attention runs on.",
    ["backend"],
    registry=OF_WORKER,
)
ATTENTION_RATE = Gauge(
    "cointeract_attention_teraflops",
    "Measured rate of each attention kernel at hand.",
    ["backend"],
    registry=OF_WORKER,
)

# Of the reaper

LAST_ROUND = Gauge(
    "cointeract_reaper_last_round_timestamp_seconds",
    "When the reaper last ended a round, in Unix time.",
    registry=OF_REAPER,
)
LOST_ATTEMPTS = Counter(
    "cointeract_lost_attempts_total", "Attempts whose worker vanished.", registry=OF_REAPER,
)  # fmt: skip
LIVE_JOBS = Gauge("cointeract_live_jobs", "Jobs that are not finished.", ["state"], registry=OF_REAPER)
REPAIRS = Counter(
    "cointeract_repairs_total",
    "Hints in Redis that were wrong and were put right.",
    ["kind"],
    registry=OF_REAPER,
)
PASSED_OVER = Gauge(
    "cointeract_passed_over",
    "Things in storage that are not ours or cannot be read, by kind.",
    ["kind"],
    registry=OF_REAPER,
)
CLOCK_TRUSTED = Gauge(
    "cointeract_clock_trusted",
    "0 while clocks disagree or have jumped, and so nothing is deleted.",
    registry=OF_REAPER,
)


def show_attention(report: AttentionReport | None) -> None:
    """Show what the newest child has measured."""
    ATTENTION.clear()
    ATTENTION_RATE.clear()
    if report is not None:
        ATTENTION.labels(report.backend).set(1)
        for backend, rate in report.teraflops.items():
            ATTENTION_RATE.labels(backend).set(rate)


def serve_metrics(port: int, registry: CollectorRegistry) -> None:
    """Answer GET /metrics on `port` in a thread of its own."""
    start_http_server(port, registry=registry)
