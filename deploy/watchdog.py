"""Watches a process by its health and not by its exit, because a frozen process never exits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CHECK_EVERY_S = 2.0
FEWEST_FAILURES = 3
"""So many checks in a row must fail: this process itself may have been stopped during the first one."""


@dataclass(frozen=True)
class HealthCheck:
    """How to tell whether a part works, and how long it may fail."""

    is_healthy: Callable[[int], bool]
    """Called with the process id, in a thread of its own, so it may take a few seconds. It returns True if it
    cannot know.
    """
    patience_s: float
    start_patience_s: float = 120.0
    """How long a part may take until it is healthy for the first time: it may load a large model."""


class Watchdog(threading.Thread):
    """Checks again and again whether process `pid` works, until `end`."""

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
        """Note that the part works: from now on the shorter patience applies, and failures of its start are
        forgotten. A slow start would otherwise end the part at the moment when it works.
        """
        if not self._was_healthy:
            self._failures, self._failing_since, self._was_healthy = 0, None, True

    def failing_for(self) -> float | None:
        """For how many seconds it has not been healthy, if that is more than the patience; else None."""
        check, since = self._check, self._failing_since
        if since is None or self._failures < FEWEST_FAILURES:
            return None
        seconds = time.monotonic() - since
        return (
            seconds if seconds > (check.patience_s if self._was_healthy else check.start_patience_s) else None
        )

    def end(self) -> None:
        self._ended.set()
