"""What lies in a store and is not ours, or cannot be understood: left alone, said once, counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Literal

from jobs.logs import one_line

log = logging.getLogger(__name__)

Kind = Literal["stray", "job", "card", "key", "claim", "cursor", "usage", "leftover"]

LOOK_AGAIN_S = 60.0
"""Somebody may mend it: after so long it is worth another look."""


class PassedOver:
    """The memory of one process. Safe to share between threads."""

    def __init__(self) -> None:
        self._noted: dict[tuple[Kind, str], float] = {}
        self._lock = threading.Lock()

    def note(self, kind: Kind, name: str, why: object) -> None:
        """Log `name`, the first time that it is met, and remember that it was."""
        with self._lock:
            is_new = (kind, name) not in self._noted
            self._noted[kind, name] = time.monotonic()
        if is_new:
            log.error(
                "passed over: %s %s: %s",
                kind,
                one_line(name),
                one_line(str(why)),
                extra={"job_id": name} if kind == "job" else None,
            )

    def was_just_noted(self, kind: Kind, name: str) -> bool:
        """Whether a look at it can wait."""
        noted = self._noted.get((kind, name))
        return noted is not None and time.monotonic() - noted < LOOK_AGAIN_S

    def forget(self, kind: Kind, name: str) -> None:
        """It is gone, or fine again."""
        with self._lock:
            self._noted.pop((kind, name), None)

    def counts(self) -> dict[str, int]:
        """Number of things by kind."""
        with self._lock:
            return dict(Counter(kind for kind, _ in self._noted))
