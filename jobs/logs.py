"""Log lines as text or JSON. A message fills one line, whatever it contains, and names its job."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from contract.settings import Settings

_EXTRA = ("job_id", "attempt", "stage", "worker", "checkpoint")


def one_line(text: str) -> str:
    """`text` with control characters escaped, so that nobody can forge log lines or drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = one_line(f"{at} {record.levelname:<7} {record.name}: {record.getMessage()}{about}")
        if record.exc_info:
            frames = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {one_line(frame)}" for frame in frames)
        return line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _about(record: logging.LogRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}


def configure_logging(settings: Settings) -> None:
    """Set up the root logger of this process. Call once, in `main`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_json else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for talkative in ("rq.worker", "botocore"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
