"""Starting one of our processes from another, ending it with its parent, and its last words when it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
NOTHING: Final = ctypes.c_ulong(0)

MOST_LAST_LINES: Final = 5
MOST_LAST_CHARS: Final = 1000


def own_process(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs one of our modules with this very Python.

    `-P` keeps the working directory off the import path: a user's own `jobs.py`, `model.py` or `random.py`
    there would otherwise be imported instead of ours.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def last_words(text: str) -> str:
    """The end of what a process wrote, short enough to be shown. The last lines of a traceback hold its
    cause.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-MOST_LAST_LINES:])[-MOST_LAST_CHARS:]


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends. On Linux only."""
    if sys.platform == "linux":
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))


def prctl(option: int, first: ctypes.c_ulong, second: object = NOTHING) -> None:
    """Linux's system call `prctl`, on this process. Raises OSError if the kernel refuses."""
    if _LIBC.prctl(option, first, second, NOTHING, NOTHING) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
