"""The child's standard error: passed on to our own as it comes, and its end kept."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

KEPT_BYTES = 4096


class LastWords(threading.Thread):
    """Reads `source`, one end of a pipe, until nobody holds the other end."""

    def __init__(self, source: int) -> None:
        super().__init__(daemon=True, name="last-words")
        self._source = source
        self._end = b""

    def run(self) -> None:
        with os.fdopen(self._source, "rb", buffering=0) as source:
            while chunk := source.read(65536):
                self._end = (self._end + chunk)[-KEPT_BYTES:]
                with suppress(OSError, ValueError):  # nobody reads ours; the child must not wait for that
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.flush()

    def text(self, patience_s: float = 1.0) -> str:
        """The end of what a dead child wrote. Waits a moment, as a process that it left may hold the pipe."""
        self.join(patience_s)
        return self._end.decode(errors="replace")
