"""Answers for admins about workers, queues and keys, and for each key about its own use."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import Field

from cointeract_client.types import Answer


class DayOfUse(Answer):
    """Use on one day (UTC), from the jobs that are still stored."""

    date: date
    submitted: int
    succeeded: int
    failed: int
    canceled: int
    gpu_seconds: float


class KeyUse(Answer):
    """The present and past use of a key."""

    key: str
    jobs: dict[str, int]
    """The number of jobs by state."""
    stored_bytes: int
    files: int
    files_bytes: int
    gpu_seconds_24h: float
    days: list[DayOfUse] = Field(default_factory=list)


class Owner(KeyUse):
    """A key and its use."""

    name: str | None = None
    scopes: list[str] = Field(default_factory=list)
    limits: dict[str, float | None] = Field(default_factory=dict)
    created_at: datetime | None = None
    revoked_at: datetime | None = None


class OwnerList(Answer):
    """All keys, and all other owners of jobs."""

    data: list[Owner]


class WorkerJob(Answer):
    """The job that a worker renders."""

    id: str
    owner: str
    progress: float
    stage: str


class Worker(Answer):
    """A live worker."""

    name: str
    model: str
    device: str
    memory_mode: str | None = None
    attention: str | None = None
    ready: bool
    draining: bool
    problem: str | None = None
    seconds_per_clip: float | None = None
    job: WorkerJob | None = None


class WorkerList(Answer):
    """All live workers."""

    data: list[Worker]
    problems: list[str] = Field(default_factory=list)


class QueuedJob(Answer):
    """A job that waits."""

    id: str
    owner: str
    priority: str
    position: int
    estimated_start_at: datetime | None = None
    estimated_finish_at: datetime | None = None


class Queue(Answer):
    """The jobs that wait for one checkpoint, in the order in which they start."""

    model: str
    workers: int
    running: int
    waiting: int
    data: list[QueuedJob]


class QueueList(Answer):
    """The queues of all checkpoints."""

    data: list[Queue]
