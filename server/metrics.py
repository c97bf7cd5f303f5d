"""Prometheus metrics of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from contract.job import JobState
from contract.worker import WorkerInfo

WEBHOOK_OUTCOMES: Final = ("arrived", "failed", "gone", "given_up")


@dataclass(frozen=True)
class Unfinished:
    """What unfinished jobs of one checkpoint and state still need."""

    jobs: int
    gpu_seconds: float | None
    """None while the checkpoint's speed has not been measured."""


@dataclass(frozen=True)
class Now:
    """What the gauges show."""

    jobs: Mapping[JobState, int] = field(default_factory=dict)
    unfinished: Mapping[tuple[str, JobState], Unfinished] = field(default_factory=dict)
    """By checkpoint and state."""
    free_bytes: int = -1
    storage_works: bool = True
    passed_over: Mapping[str, int] = field(default_factory=dict)
    workers: Sequence[WorkerInfo] | None = None
    problems: Sequence[str] = ()


class Metrics:
    """One registry per application, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "cointeract_http_requests", "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "cointeract_http_request_seconds", "Seconds until the answer started.", ["route", "method"],
            registry=self.registry, buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )  # fmt: skip
        self.loop_lag = Histogram(
            "cointeract_loop_lag_seconds", "How long the event loop was held up, tried ten times a second.",
            registry=self.registry, buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )  # fmt: skip
        self.loop_waits = Counter(
            "cointeract_loop_waits",
            "Requests and chunks that waited: their tenant had used more than its share of the event loop.",
            registry=self.registry,
        )
        self.jobs = Gauge("cointeract_jobs", "Stored jobs by state.", ["state"], registry=self.registry)
        self.unfinished_jobs = Gauge(
            "cointeract_unfinished_jobs", "Jobs that wait or are being rendered.", ["checkpoint", "state"],
            registry=self.registry,
        )  # fmt: skip
        self.remaining_seconds = Gauge(
            "cointeract_remaining_gpu_seconds",
            "What unfinished jobs still need of one worker; nothing before a worker has measured its speed.",
            ["checkpoint", "state"], registry=self.registry,
        )  # fmt: skip
        self.storage_works = Gauge(
            "cointeract_storage_works", "1 if jobs can be stored now, else 0.", registry=self.registry
        )
        self.free_bytes = Gauge(
            "cointeract_free_bytes",
            "Free space of the storage; -1 if it does not say.",
            registry=self.registry,
        )
        self.passed_over = Gauge(
            "cointeract_passed_over", "Things in storage that are not ours or cannot be read.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.workers = Gauge(
            "cointeract_workers", "Live workers; -1 if Redis does not answer.", registry=self.registry
        )
        self.failing_workers = Gauge(
            "cointeract_failing_workers", "Live workers that cannot work.", registry=self.registry
        )
        self.problems = Gauge(
            "cointeract_problem_info", "1 for each thing that keeps a worker or another part from working.",
            ["problem"], registry=self.registry,
        )  # fmt: skip
        self.refused = Counter(
            "cointeract_refused_requests", "Requests that were not served, by error code.", ["code"],
            registry=self.registry,
        )  # fmt: skip
        self.webhooks = Counter(
            "cointeract_webhook_deliveries",
            "Tries to deliver a webhook: arrived, failed (tried again), gone (410), given_up after a day.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        for outcome in WEBHOOK_OUTCOMES:  # a rise from nothing to 1 is none for Prometheus
            self.webhooks.labels(outcome)
        self.webhook_seconds = Histogram(
            "cointeract_webhook_seconds", "Seconds until a webhook's receiver answered, or was given up.",
            registry=self.registry, buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip

    def render(self, now: Now) -> bytes:
        """The exposition text with the gauges as of now."""
        for kind, count in now.passed_over.items():
            self.passed_over.labels(kind).set(count)
        for state, count in now.jobs.items():
            self.jobs.labels(state.value).set(count)
        self.unfinished_jobs.clear()
        self.remaining_seconds.clear()
        for (checkpoint, state), unfinished in now.unfinished.items():
            self.unfinished_jobs.labels(checkpoint, state.value).set(unfinished.jobs)
            if unfinished.gpu_seconds is not None:
                self.remaining_seconds.labels(checkpoint, state.value).set(unfinished.gpu_seconds)
        self.free_bytes.set(now.free_bytes)
        self.storage_works.set(now.storage_works)
        self.workers.set(-1 if now.workers is None else len(now.workers))
        self.failing_workers.set(sum(worker.problem is not None for worker in now.workers or ()))
        self.problems.clear()
        for problem in now.problems:
            self.problems.labels(problem).set(1)
        return generate_latest(self.registry)
