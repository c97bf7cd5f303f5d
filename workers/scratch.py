"""The folder in which an attempt prepares its files before they are published."""

from __future__ import annotations

import re

from contract.job import JOB_ID

_FOLDER = re.compile(rf"attempt-(?P<job>{JOB_ID.pattern})-(?P<attempt>\d+)")


def attempt_folder(job_id: str, attempt: int) -> str:
    """The folder's name within scratch."""
    return f"attempt-{job_id}-{attempt}"


def attempt_of_folder(name: str) -> tuple[str, int] | None:
    """The (job id, attempt) that a folder belongs to; None if it belongs to none."""
    match = _FOLDER.fullmatch(name)
    return (match["job"], int(match["attempt"])) if match else None
