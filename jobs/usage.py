"""GPU time that no job shows: of deleted jobs, and of clips that a cancel broke off.

It is noted in one small file each, because it counts against the limit of its key all the same.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from contract.frozen import Frozen
from contract.job import JOB_ID
from jobs.artifacts import ArtifactStore
from jobs.record_kinds import RecordKind

USAGE_FOLDER: Final = "usage"
USAGE_NAME: Final = re.compile(rf"{JOB_ID.pattern}(-[0-9]+)?\.json")


class SpentUsage(Frozen):
    """What an owner has used."""

    owner: str
    gpu_seconds: float
    at: datetime


USAGE_RECORDS: Final = RecordKind(USAGE_FOLDER, USAGE_NAME, lambda name, data: SpentUsage.stored(data))


def note_usage(store: ArtifactStore, usage: SpentUsage, job_id: str, attempt: int | None = None) -> str:
    """Note usage of a job, or of one attempt whose clip was broken off. Returns the file's name.

    Raises OSError.
    """
    name = f"{job_id}.json" if attempt is None else f"{job_id}-{attempt}.json"
    store.create(f"{USAGE_FOLDER}/{name}", usage.model_dump_json().encode())
    return name
