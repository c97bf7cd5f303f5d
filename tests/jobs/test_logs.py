from __future__ import annotations

import json
import logging

from jobs.logs import JsonFormatter, TextFormatter


def record(message: str) -> logging.LogRecord:
    made = logging.LogRecord("jobs", logging.WARNING, "file", 1, message, None, None)
    made.job_id = "job_1"
    return made


def test_control_characters_cannot_forge_a_line_or_drive_a_terminal() -> None:
    line = TextFormatter().format(record("name\n12:00:00 INFO all is well\x1b[2J\u202e"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "\\n12:00:00" in line
    assert line.endswith("job_id=job_1")


def test_json_lines_hold_the_job() -> None:
    line = JsonFormatter().format(record("a\nb"))
    assert "\n" not in line
    assert json.loads(line)["job_id"] == "job_1"
    assert json.loads(line)["message"] == "a\nb"
