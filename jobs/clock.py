"""The time on which something may be deleted. One machine's clock alone may be hours or days off."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from jobs.artifacts import ArtifactStore

MOST_APART_S = 60.0
HOLD_S = 3600.0
"""After a jump: long enough for somebody to notice, short enough for a disk not to fill."""


class ClockNotTrusted(Exception):
    """Nothing may be deleted now; the message says why."""


@dataclass
class Clock:
    """Unix time, if this machine, the storage and Redis agree on it and it has not jumped lately.

    All three may be one machine, whose clock somebody sets. So a clock that jumps against the time since
    boot, which nobody can set, is not trusted for `HOLD_S`.
    """

    store: ArtifactStore
    redis: Redis
    wall: Callable[[], float] = time.time
    since_boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    _last: tuple[float, float] | None = None
    _held_until: float = 0.0
    _jump_s: float = 0.0

    def now(self) -> float:
        """The earliest of the three. Raises ClockNotTrusted, and OSError if storage does not answer.

        A Redis that is away is left out.
        """
        wall, since_boot = self.wall(), self.since_boot()
        last_wall, last_since_boot = self._last or (wall, since_boot)
        self._last = wall, since_boot
        jump = (wall - last_wall) - (since_boot - last_since_boot)
        if abs(jump) > MOST_APART_S:
            self._jump_s, self._held_until = jump, since_boot + HOLD_S
        if since_boot < self._held_until:
            raise ClockNotTrusted(
                f"this machine's clock jumped by {self._jump_s:+.0f} s: nothing is deleted for "
                f"{self._held_until - since_boot:.0f} s"
            )
        readings = {"this machine": wall, "the storage": self.store.now()}
        try:
            seconds, microseconds = self.redis.time()
            readings["Redis"] = seconds + microseconds / 1e6
        except RedisError:
            pass
        if max(readings.values()) - min(readings.values()) > MOST_APART_S:
            said = ", ".join(f"{name} says {_as_text(at)}" for name, at in readings.items())
            raise ClockNotTrusted(f"the clocks disagree, so nothing is deleted: {said}")
        return min(readings.values())


def _as_text(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
