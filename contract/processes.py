"""How one of our processes starts another, and what is told of one that died."""

from __future__ import annotations

import sys
from typing import Final

MOST_LAST_LINES: Final = 5
MOST_LAST_CHARS: Final = 1000


def own_process(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs one of our modules with this very Python.

    `-P` keeps the working directory off the import path: a user's own `jobs.py`, `model.py` or `random.py`
    there would otherwise be imported instead of what we mean.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def last_words(text: str) -> str:
    """The end of what a process wrote, short enough to be shown: a traceback's last lines hold its cause."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-MOST_LAST_LINES:])[-MOST_LAST_CHARS:]
