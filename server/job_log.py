"""The log of a job as its owner sees it: its journal in words, and its workers' messages."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from contract.entries import (
    Canceled,
    ClipFinished,
    Failed,
    Interrupted,
    JournalEntry,
    Started,
    Submitted,
    Succeeded,
)
from contract.state import Job
from jobs.job_log import read_attempt_log
from server.schemas import Wire
from server.services import Services


class LogLineView(Wire):
    """An event, or a worker's message."""

    at: datetime
    source: Literal["journal", "worker"]
    attempt: int | None = Field(description="The attempt that it is about.")
    level: str = Field(description="info, warning or error.")
    message: str


class JobLogView(Wire):
    """A job's history, oldest first."""

    object: Literal["job.log"] = "job.log"
    id: str
    data: list[LogLineView]


def _in_words(entry: JournalEntry) -> tuple[str, str]:
    """Level and message of an entry."""
    match entry:
        case Submitted():
            return "info", f"submitted, to be rendered with {entry.checkpoint}"
        case Started():
            device = f" on {entry.maker.device}" if entry.maker else ""
            return "info", f"attempt {entry.attempt} started{device}"
        case ClipFinished():
            return "info", f"clip {entry.clip} finished after {entry.gpu_seconds:.1f} s"
        case Interrupted():
            burned = "" if entry.burns_attempt else "; it does not count"
            return "warning", f"attempt {entry.attempt} interrupted ({entry.reason}): {entry.message}{burned}"
        case Succeeded():
            return "info", f"succeeded: {entry.duration_s:.1f} s of video"
        case Failed():
            return "error", f"failed while {entry.error.stage} ({entry.error.code}): {entry.error.message}"
        case Canceled():
            return "info", f"canceled ({entry.reason})"
        case _:
            return "info", entry.type


def job_log(job: Job, services: Services) -> JobLogView:
    """The log of a job as of now. Raises UnreadableJob, OSError."""
    lines = []
    for entry in services.journal.entries(job.id):
        level, message = _in_words(entry)
        attempt = getattr(entry, "attempt", None)
        lines.append(
            LogLineView(at=entry.at, source="journal", attempt=attempt, level=level, message=message)
        )
    for attempt in range(1, job.attempt + 1):
        for line in read_attempt_log(services.store, job.id, attempt).lines:
            lines.append(LogLineView(source="worker", attempt=attempt, **line.model_dump()))
    return JobLogView(id=job.id, data=sorted(lines, key=lambda line: line.at))
