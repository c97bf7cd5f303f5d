"""The log of a job: the messages of each attempt's worker, kept in the job's folder."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from contract.frozen import Frozen
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.journal import job_prefix
from jobs.record_kinds import RecordKind


class LogLine(Frozen):
    """One message."""

    at: datetime
    level: str
    """info, warning or error."""
    message: str


class AttemptLog(Frozen):
    """The messages of one attempt's worker."""

    attempt: int
    lines: tuple[LogLine, ...] = ()


LOG_RECORDS: Final = RecordKind("", re.compile(r"log-\d+\.json"), lambda name, data: AttemptLog.stored(data))


def write_attempt_log(store: ArtifactStore, job_id: str, log: AttemptLog) -> None:
    """Write, or replace, the log of an attempt. Nothing is written for a job that was removed.

    Raises OSError.
    """
    try:
        store.write(_key(job_id, log.attempt), log.model_dump_json().encode())
    except FileNotFoundError:
        return


def read_attempt_log(store: ArtifactStore, job_id: str, attempt: int) -> AttemptLog:
    """The log of an attempt; an empty one if its worker wrote none. Raises OSError."""
    try:
        data = store.read(_key(job_id, attempt))
        return AttemptLog(attempt=attempt) if data is None else AttemptLog.stored(data)
    except (ValueError, NoFileOfOurs) as error:
        store.passed_over.note("stray", _key(job_id, attempt), error)
        return AttemptLog(attempt=attempt)


def _key(job_id: str, attempt: int) -> str:
    return f"{job_prefix(job_id)}/log-{attempt}.json"
