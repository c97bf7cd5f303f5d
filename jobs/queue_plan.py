"""The start order of a long queue, worked out now and then by one process for all.

To say which of 100,000 jobs starts next, all of them must be read: seconds of work, which every worker would
do before each job and every API a few times a second. So the reaper does it, and notes the places in a sorted
set; the others read its beginning, and look up single places. Up to the next plan, jobs that came since have
no place in it and start behind it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, cast

from redis import Redis
from redis.client import Pipeline

PLANNED_FROM: Final = 2000
"""A queue up to this long is read as a whole by everybody, which takes about 20 ms, and needs no plan."""
SEEN: Final = 256
"""How many jobs of a longer one are read for a snapshot."""
PLAN_KEPT_S: Final = 600
"""A plan that nobody renews is forgotten after this time."""
_AT_ONCE: Final = 1000
"""Places written with one command, which holds up Redis for about a millisecond."""


@dataclass(frozen=True)
class QueuePlan:
    """The plan of one queue, under one key of Redis. Every method may raise RedisError."""

    redis: Redis
    key: str

    def write(self, job_ids: Sequence[str]) -> None:
        """Replace the plan in one step."""
        if not job_ids:
            self.forget()
            return
        places = iter(enumerate(job_ids))
        fresh = f"{self.key}:{secrets.token_hex(4)}"
        while chunk := list(islice(places, _AT_ONCE)):
            with self.redis.pipeline(transaction=False) as pipeline:
                pipeline.zadd(fresh, {job_id: place for place, job_id in chunk})
                pipeline.expire(fresh, PLAN_KEPT_S)
                pipeline.execute()
        self.redis.rename(fresh, self.key)

    def forget(self) -> None:
        self.redis.delete(self.key)

    def first(self, pipeline: Pipeline) -> None:
        """Ask for the ids of the jobs that start first."""
        pipeline.zrange(self.key, 0, SEEN - 1)

    def drop(self, job_ids: Sequence[bytes]) -> None:
        """Take jobs out that wait no more."""
        if job_ids:
            self.redis.zrem(self.key, *job_ids)

    def place(self, job_id: str) -> int | None:
        """1 for the job that starts first; None for one that came since the plan was made."""
        found = cast(int | None, self.redis.zrank(self.key, job_id))
        return None if found is None else found + 1
