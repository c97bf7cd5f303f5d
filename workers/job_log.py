"""What a worker says about one attempt, kept with its job: stages as they begin, and log lines about it."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from contract.job import Stage, utcnow
from jobs.artifacts import ArtifactStore
from jobs.job_log import AttemptLog, LogLine, write_attempt_log
from jobs.logs import one_line

MOST_LINES = 1000
"""Of one attempt. What comes later is left out but for the last lines."""
LONGEST_LINE = 500


class JobLogHandler(logging.Handler):
    """Collects the lines of one attempt, which name their job (`extra`). `save` writes them to storage."""

    def __init__(self, store: ArtifactStore, job_id: str, attempt: int) -> None:
        super().__init__(logging.INFO)
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self._lines: list[LogLine] = []
        self._adding = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "job_id", None) == self._job_id:
            self._add(record.levelname.lower(), record.getMessage())

    def stage_begins(self, stage: Stage, clip: int) -> None:
        """Note that the attempt goes on to another stage."""
        self._add("info", f"{stage}, clip {clip}")

    def _add(self, level: str, message: str) -> None:
        line = LogLine(at=utcnow(), level=level, message=one_line(message)[:LONGEST_LINE])
        with self._adding:
            self._lines.append(line)
            if len(self._lines) > MOST_LINES:
                del self._lines[MOST_LINES // 2]  # the beginning and the end tell most

    def save(self) -> None:
        """Write what was said so far. A log is no reason to fail: what cannot be written is left out."""
        with self._adding:
            lines = tuple(self._lines)
        with suppress(OSError):
            write_attempt_log(self._store, self._job_id, AttemptLog(attempt=self._attempt, lines=lines))
