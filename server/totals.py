"""The use of keys: their jobs by state and day, their files, and the GPU time of the last 24 hours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date

from pydantic import Field

from contract.job import JobState, utcnow
from jobs.kept_files import KeptFiles
from server.job_summary import JobSummary
from server.schemas import Wire
from server.services import Services


class DayOfUse(Wire):
    """Use on one day (UTC), from the jobs that are still stored."""

    date: date
    submitted: int = Field(description="Jobs submitted on that day.")
    succeeded: int = Field(description="Of these, by now.")
    failed: int
    canceled: int
    gpu_seconds: float = Field(description="Of jobs that used the GPU last on that day.")


class UsageView(Wire):
    """The present and past use of a key."""

    object: str = "usage"
    key: str = Field(description="Id of the key, or `local` without keys.")
    jobs: dict[JobState, int] = Field(description="Stored jobs, by state.")
    stored_bytes: int = Field(
        description="What jobs take, with what unfinished ones will still store, about."
    )
    files: int = Field(description="Kept files.")
    files_bytes: int
    gpu_seconds_24h: float = Field(description="Of the last 24 hours, deleted jobs included.")
    days: list[DayOfUse] = Field(description="The newest first.")


def usage_of(owner: str, services: Services) -> UsageView:
    """The use of a key. Raises OSError."""
    jobs = services.index.summaries(owner)
    kept = KeptFiles(services.store).of(owner, utcnow())
    return UsageView(
        key=owner,
        jobs={state: sum(job.state is state for job in jobs) for state in JobState},
        stored_bytes=services.index.stored_bytes(owner),
        files=len(kept),
        files_bytes=sum(file.decoded.size for file in kept),
        gpu_seconds_24h=round(services.index.spent(owner), 3),
        days=days_of(jobs),
    )


def days_of(jobs: Iterable[JobSummary]) -> list[DayOfUse]:
    """The days of these jobs, the newest first."""
    counts: defaultdict[date, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for job in jobs:
        submitted = counts[job.created_at.date()]
        submitted["submitted"] += 1
        if job.state.is_terminal:
            submitted[job.state.value] += 1
        if job.gpu_seconds:
            counts[job.last_at.date()]["gpu_seconds"] += job.gpu_seconds
    return [
        DayOfUse(
            date=day,
            submitted=int(found["submitted"]),
            succeeded=int(found["succeeded"]),
            failed=int(found["failed"]),
            canceled=int(found["canceled"]),
            gpu_seconds=round(found["gpu_seconds"], 3),
        )
        for day, found in sorted(counts.items(), reverse=True)
    ]
