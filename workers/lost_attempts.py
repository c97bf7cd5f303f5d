"""Recording the end of an attempt whose own process could not do so. Whoever notices it does this."""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from contract.entries import Failed, Interrupted, InterruptReason
from contract.job import JobState, Stage
from contract.memory import MemoryMode
from contract.state import Job
from jobs.journal import JobNotFound, Journal, Outdated, UnreadableJob, verdict
from jobs.queue import JobQueue

log = logging.getLogger(__name__)


def end_attempt(
    journal: Journal,
    queue: JobQueue,
    job_id: str,
    attempt: int,
    *,
    reason: InterruptReason,
    message: str,
    burns_attempt: bool,
    max_attempts: int,
    stage: Stage,
    memory_mode: MemoryMode | None = None,
) -> Interrupted | Failed | None:
    """Queue the job again, or fail it, if `attempt` still has it. Returns the entry, None if it has not.

    The first time that a job falls back to another `memory_mode`, its attempt does not count.

    Raises OSError if the store cannot write.
    """
    try:
        job = journal.read(job_id)
        if job.state is not JobState.PROCESSING or job.attempt != attempt:
            return None
        entry = verdict(
            job,
            reason=reason,
            message=message,
            max_attempts=max_attempts,
            stage=stage,
            burns_attempt=burns_attempt and (memory_mode is None or job.memory_mode is not None),
            memory_mode=memory_mode,
        )
        job = journal.append(job, entry)
    except (Outdated, JobNotFound):
        return None
    except UnreadableJob as error:  # left alone, like all of that job
        journal.store.passed_over.note("job", job_id, error)
        return None
    log.warning(
        "attempt ended: %s (%s)%s",
        reason,
        message,
        "" if job.state is JobState.QUEUED else "; the job has failed",
        extra={"job_id": job_id, "attempt": attempt, "stage": str(stage)},
    )
    announce_again(queue, job)
    return entry


def announce_again(queue: JobQueue, job: Job) -> None:
    """Offer a job that is queued again to the workers. If Redis is away, the reaper does it later."""
    if job.state is not JobState.QUEUED:
        return
    try:
        queue.announce(job)
    except RedisError as error:
        log.info("Redis is away (%s): the reaper will announce the job", error, extra={"job_id": job.id})
