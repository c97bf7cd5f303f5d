"""A copy of what the index knows of finished jobs, on this machine's disk.

An API process that starts would read every stored journal, about a millisecond each: a quarter of an hour for
a million. A finished job changes no more but for its metadata, whose time tells that. So the copy spares all
these reads. It is a cache: what is missing or makes no sense in it is read from the journals.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from contract.job import JobState
from server.job_summary import JobSummary

log = logging.getLogger(__name__)

COPY_FORMAT: Final = 1
_FILE: Final = "finished-jobs.jsonl"


@dataclass
class IndexCopy:
    """The copy in a folder. `as_of` is the time of the storage up to which it is right."""

    folder: Path
    as_of: float = 0.0
    jobs: dict[str, JobSummary] = field(default_factory=dict)

    def load(self) -> None:
        """Read the copy, if there is one of this format."""
        try:
            with (self.folder / _FILE).open(encoding="utf-8") as file:
                form, as_of = json.loads(file.readline())
                if form != COPY_FORMAT:
                    return
                self.jobs = {job.id: job for job in map(_summary, file)}
                self.as_of = float(as_of)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.jobs, self.as_of = {}, 0.0
            log.warning("the copy of the index is not used, and made anew: %s", error)

    def save(self, jobs: Iterable[JobSummary], as_of: float) -> None:
        """Replace the copy by the finished ones of these jobs. An error costs time at the next start only."""
        temporary = self.folder / f".{_FILE}-{secrets.token_hex(4)}"
        try:
            with temporary.open("x", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(json.dumps([COPY_FORMAT, as_of]) + "\n")
                file.writelines(_line(job) for job in jobs if job.state.is_terminal)
            temporary.rename(self.folder / _FILE)
        except OSError as error:
            log.warning("the copy of the index cannot be written: %s", error)
            temporary.unlink(missing_ok=True)
        self.jobs, self.as_of = {}, 0.0  # it has done its service


def _line(job: JobSummary) -> str:
    row = [
        *(job.id, job.owner, job.sequence, job.state.value, job.stored_bytes, job.gpu_seconds),
        *(job.checkpoint, job.webhook_host, job.created_at.isoformat(), job.last_at.isoformat()),
        sorted(label.hex() for label in job.labels),
    ]
    return json.dumps(row) + "\n"


def _summary(line: str) -> JobSummary:
    job_id, owner, sequence, state, size, gpu_seconds, checkpoint, host, created, last, labels = json.loads(
        line
    )
    return JobSummary(
        id=job_id,
        owner=owner,
        sequence=sequence,
        state=JobState(state),
        stored_bytes=size,
        gpu_seconds=gpu_seconds,
        checkpoint=checkpoint,
        remaining=None,
        webhook_host=host,
        created_at=datetime.fromisoformat(created),
        labels=frozenset(bytes.fromhex(label) for label in labels),
        last_at=datetime.fromisoformat(last),
    )
