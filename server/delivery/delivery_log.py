"""The log of a job's webhooks: each try of each message, kept with the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from contract.frozen import Frozen
from contract.state import Job
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.journal import job_prefix
from jobs.record_kinds import RecordKind

_NAME: Final = "deliveries.json"
MOST_TRIES_KEPT: Final = 30
"""How many tries of one message are kept. The oldest are dropped first."""


class Try(Frozen):
    """One try to deliver a message."""

    at: datetime
    seconds: float
    """The time until the answer, or until the try was given up."""
    status: int | None = None
    """The status of the answer; None if there was no answer."""
    error: str | None = None
    """The reason why there was no answer."""

    @property
    def arrived(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class DeliveryLog(Frozen):
    """The tries of each message, by the number of its journal entry, oldest first."""

    tries: Mapping[int, tuple[Try, ...]] = {}

    def noted(self, sequence: int, made: Try) -> DeliveryLog:
        """The log with one more try."""
        known = (*self.tries.get(sequence, ()), made)[-MOST_TRIES_KEPT:]
        return DeliveryLog(tries={**self.tries, sequence: known})


DELIVERY_RECORDS: Final = RecordKind(
    "", re.compile(re.escape(_NAME)), lambda name, data: DeliveryLog.stored(data)
)


def read_log(store: ArtifactStore, job_id: str) -> DeliveryLog:
    """The log of a job. It is empty if none is kept or it cannot be read. Raises OSError."""
    try:
        data = store.read(_path(job_id))
        return DeliveryLog() if data is None else DeliveryLog.stored(data)
    except (ValueError, NoFileOfOurs) as error:
        store.passed_over.note("cursor", f"{job_id}: deliveries", error)
        return DeliveryLog()


def note_try(store: ArtifactStore, job: Job, made: Try) -> None:
    """Note one more try of the message about entry `job.sequence`. Raises OSError.

    Only the process that holds the job's claim may call it.
    """
    log = read_log(store, job.id).noted(job.sequence, made)
    try:
        store.write(_path(job.id), log.model_dump_json().encode())
    except FileNotFoundError:
        return  # the job was removed meanwhile


def _path(job_id: str) -> str:
    return f"{job_prefix(job_id)}/{_NAME}"
