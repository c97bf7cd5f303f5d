"""Ends this machine's workers between two clips, so that no GPU time is lost when the machine is taken away.

A worker that gets SIGTERM hands its job back behind the last finished clip. What it has rendered of the next
one is lost, which for a large video is minutes. So whoever stops it calls `drain_here` first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from contract.worker import WorkerInfo
from jobs.identity import lives_here
from jobs.queue import JobQueue

log = logging.getLogger(__name__)

POLL_S = 0.5
Place = tuple[str, int, int]


def drain_here(
    queue: JobQueue,
    most_s: float,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> bool:
    """Let the workers that we see take no other job, and wait until each is idle or has begun another clip.

    False if that took longer than `most_s`. Raises RedisError.
    """
    until = now() + most_s
    began = {info.name: _place(info) for info in _here(queue)}
    for name in began:
        queue.drain(name, True)
        log.info("draining", extra={"worker": name})
    while any(place == began.get(name) for name, place in _busy(queue)):
        if now() > until:
            return False
        wait(POLL_S)
    return True


def _here(queue: JobQueue) -> list[WorkerInfo]:
    return [info for info in queue.workers() if lives_here(info.name)]


def _busy(queue: JobQueue) -> list[tuple[str, Place]]:
    places = [(info.name, _place(info)) for info in _here(queue)]
    return [(name, place) for name, place in places if place is not None]


def _place(info: WorkerInfo) -> Place | None:
    """The clip that a worker renders; None if it is idle."""
    running = info.running
    return None if running is None else (running.job_id, running.attempt, running.progress.clip)
