"""Prometheus metrics of the API."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from contract.job import JobState
from contract.worker import WorkerInfo


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
        self.jobs = Gauge("cointeract_jobs", "Stored jobs by state.", ["state"], registry=self.registry)
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
            "cointeract_refused_requests", "Refused requests by error code.", ["code"], registry=self.registry
        )

    def render(
        self,
        jobs: dict[JobState, int],
        free_bytes: int,
        passed_over: dict[str, int],
        workers: list[WorkerInfo] | None,
        problems: Sequence[str],
    ) -> bytes:
        """The exposition text with the gauges as of now."""
        for kind, count in passed_over.items():
            self.passed_over.labels(kind).set(count)
        for state, count in jobs.items():
            self.jobs.labels(state.value).set(count)
        self.free_bytes.set(free_bytes)
        self.workers.set(-1 if workers is None else len(workers))
        self.failing_workers.set(sum(worker.problem is not None for worker in workers or ()))
        self.problems.clear()
        for problem in problems:
            self.problems.labels(problem).set(1)
        return generate_latest(self.registry)
