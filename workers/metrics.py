"""What workers and the reaper count, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from contract.attention import AttentionReport

ATTEMPTS = Counter("cointeract_attempts_total", "Attempts by how they ended.", ["outcome", "stage", "cause"])
CHILD_DEATHS = Counter("cointeract_child_deaths_total", "Times a worker's child had to be replaced.")
MEMORY_FALLS = Counter(
    "cointeract_memory_falls_total", "Times a worker ran out of device memory and went on in mode.", ["mode"]
)
CLIP_SECONDS = Histogram(
    "cointeract_clip_seconds",
    "Time to render one clip.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 2400, 4800),
)
LOST_ATTEMPTS = Counter("cointeract_lost_attempts_total", "Attempts whose worker vanished.")
LIVE_JOBS = Gauge("cointeract_live_jobs", "Jobs that are not finished.", ["state"])
REPAIRS = Counter("cointeract_repairs_total", "Hints in Redis that were wrong and were put right.", ["kind"])
PASSED_OVER = Gauge(
    "cointeract_passed_over", "Things in storage that are not ours or cannot be read, by kind.", ["kind"]
)
CLOCK_TRUSTED = Gauge(
    "cointeract_clock_trusted", "0 while clocks disagree or have jumped, and so nothing is deleted."
)
ATTENTION = Gauge(
    "cointeract_attention_info", "1 for the kernel that this worker's attention runs on.", ["backend"]
)
ATTENTION_RATE = Gauge(
    "cointeract_attention_teraflops", "Measured rate of each attention kernel at hand.", ["backend"]
)


def show_attention(report: AttentionReport | None) -> None:
    """Show what the newest child has measured."""
    ATTENTION.clear()
    ATTENTION_RATE.clear()
    if report is not None:
        ATTENTION.labels(report.backend).set(1)
        for backend, rate in report.teraflops.items():
            ATTENTION_RATE.labels(backend).set(rate)


def serve_metrics(port: int) -> None:
    """Answer GET /metrics on `port` in a thread of its own."""
    start_http_server(port)
