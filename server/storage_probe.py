"""Whether storage can be used now, asked of it rarely: anybody may call /readyz."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

from jobs.artifacts import ArtifactStore

KEPT_S: Final = 2.0


@dataclass
class StorageProbe:
    """Safe to share between threads."""

    store: ArtifactStore
    min_free_bytes: int
    _asked_at: float = float("-inf")
    _problem: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def problem(self) -> str | None:
        """Why no job can be stored at the moment, None if one can; at most `KEPT_S` old."""
        with self._lock:
            if time.monotonic() - self._asked_at > KEPT_S:
                self._problem = self._ask()
                self._asked_at = time.monotonic()
            return self._problem

    def _ask(self) -> str | None:
        try:
            if self.store.free_bytes() < self.min_free_bytes:
                return "less space is free than COINTERACT_MIN_FREE_BYTES"
            self.store.check()
        except OSError as error:
            return error.strerror or str(error)
        return None
