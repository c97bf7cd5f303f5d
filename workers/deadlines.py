"""Cancels jobs that are not over when their time is (`cancel_after`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

from redis.exceptions import RedisError

from contract.entries import Canceled
from contract.job import CancelReason
from contract.state import Job
from jobs.journal import JobNotFound, Journal, Outdated
from jobs.queue import JobQueue

log = logging.getLogger(__name__)


def cancel_late(journal: Journal, queue: JobQueue, jobs: Iterable[Job], now: datetime) -> list[Job]:
    """Cancel those of `jobs` whose deadline has passed. One that changes meanwhile waits for the next round.

    Returns the canceled jobs. Raises OSError if storage fails.
    """
    canceled = []
    for job in jobs:
        if job.state.is_terminal or job.cancel_at is None or now < job.cancel_at:
            continue
        entry = Canceled(at=now, by="deadline", reason=CancelReason.DEADLINE)
        with suppress(JobNotFound, Outdated):
            canceled.append(journal.append(job, entry))
            log.info("canceled: not over after its cancel_after", extra={"job_id": job.id})
            with suppress(RedisError):
                queue.withdraw(job.id, job.submitted.checkpoint)
    return canceled
