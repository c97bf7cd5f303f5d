"""The report of `cointeract chaos`, and how it is shown."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Report:
    """The findings of a run. The figures of the first block must be zero."""

    lost: int = 0
    """Accepted jobs that storage does not know."""
    duplicated: int = 0
    """Jobs that ended twice, or keys that made two jobs."""
    partial: int = 0
    """Videos served with other bytes than an unbroken run gives."""
    stuck: int = 0
    """Jobs that did not end in time."""
    flipped: int = 0
    """Jobs that were seen in one final state and later in another."""
    refused: int = 0
    """Requests answered with neither success nor a documented refusal."""
    unexplained: int = 0
    """Attempts that counted against a job although no injected fault had ended them."""
    webhooks_lost: int = 0
    """Jobs whose end was never posted to a receiver that answers."""

    seed: int = 0
    workers: int = 0
    apis: int = 0
    rate: float = 0.0
    """Jobs submitted per second before the first fault."""
    max_attempts: int = 0
    """The number of attempts that may fail before the job fails: the default of the service."""
    jobs: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    kills: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    interruptions: dict[str, int] = field(default_factory=dict)
    resumed_clips: int = 0
    """Finished clips that a later attempt did not have to render again."""
    restarts: int = 0
    restart_p50_s: float | None = None
    restart_p99_s: float | None = None
    """Seconds from the fault that hit a running attempt to the start of the next attempt."""
    submit_p50_ms: float | None = None
    submit_p99_ms: float | None = None
    """Of submits without faults, at `rate` per second."""
    submit_under_faults_p99_ms: float | None = None
    status_p99_ms: float | None = None
    """Of status requests without faults."""
    status_under_faults_p99_ms: float | None = None
    cancel_p99_s: float | None = None
    """Seconds from the request until the job is canceled and no worker holds it, without faults."""
    cancel_under_faults_p99_s: float | None = None
    """The same with faults: it includes waiting for a dead API, Redis or worker."""
    webhooks: int = 0
    """Jobs that named a webhook. For half of them it is a black hole."""
    webhooks_repeated: int = 0
    """Messages that arrived more than once, because their sender died before it could note the answer."""
    webhook_p99_s: float | None = None
    """Seconds from a job's end to its message at a receiver that answers, without faults."""
    webhook_under_faults_p99_s: float | None = None
    overload: dict[str, int] = field(default_factory=dict)
    """The number of answers to a flood against a full queue, by status code."""
    overload_per_s: float | None = None
    """How many requests of the flood were answered per second."""
    overload_api_growth_mb: float | None = None
    seconds: float = 0.0

    def ok(self) -> bool:
        """Whether every promise held."""
        wrong = self.lost + self.duplicated + self.partial + self.stuck + self.flipped + self.refused
        wrong += self.unexplained + self.webhooks_lost
        return wrong == 0 and set(self.overload) <= {"202", "429"}


def as_json(report: Report) -> str:
    return json.dumps({"ok": report.ok(), **dataclasses.asdict(report)})


def show(report: Report, console: Console) -> None:
    """Print every figure that was measured, and the verdict."""
    table = Table.grid(padding=(0, 2))
    for name, value in dataclasses.asdict(report).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or None
        if value is not None:
            table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    if report.ok():
        console.print("Every promise held.", style="green")
    else:
        console.print("A promise was broken; see docs/reliability.md.", style="red")
