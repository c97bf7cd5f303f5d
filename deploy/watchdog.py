"""Watches over a process by its health, not by its exit: a frozen one never exits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CHECK_EVERY_S = 2.0
FEWEST_FAILURES = 3
"""So many checks in a row must fail: this process may itself have been stopped while the first one ran."""


@dataclass(frozen=True)
class HealthCheck:
    """How to tell whether a part works, and for how long it may not."""

    is_healthy: Callable[[int], bool]
    """Asked with the process id, from a thread of its own, so it may take a few seconds. What it cannot know
    counts as healthy.
    """
    patience_s: float
    start_patience_s: float = 120.0
    """Until the first time that it is healthy: a part may load a large model first."""


class Watchdog(threading.Thread):
    """Asks again and again whether process `pid` works, until `end`."""

    def __init__(self, check: HealthCheck, pid: int) -> None:
        super().__init__(daemon=True, name="watchdog")
        self._check, self._pid = check, pid
        self._ended = threading.Event()
        self._failures = 0
        self._failing_since: float | None = None
        self._was_healthy = False

    def run(self) -> None:
        while not self._ended.wait(min(CHECK_EVERY_S, self._check.patience_s / FEWEST_FAILURES)):
            asked = time.monotonic()
            if self._check.is_healthy(self._pid):
                self._failures, self._failing_since, self._was_healthy = 0, None, True
            else:
                self._failures += 1
                self._failing_since = self._failing_since or asked

    def has_started(self) -> None:
        """It has worked: from now on the shorter patience counts."""
        self._was_healthy = True

    def failing_for(self) -> float | None:
        """Seconds without health once they exceed the patience, else None."""
        check, since = self._check, self._failing_since
        if since is None or self._failures < FEWEST_FAILURES:
            return None
        seconds = time.monotonic() - since
        return (
            seconds if seconds > (check.patience_s if self._was_healthy else check.start_patience_s) else None
        )

    def end(self) -> None:
        self._ended.set()
