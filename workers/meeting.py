"""The folder in which the ranks of a worker find each other.

A lock on it says that its worker lives. The kernel drops the lock however the worker ends, so the next worker
can tell what a killed one has left, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "cointeract-ranks-"


@contextmanager
def meeting_place() -> Iterator[Path]:
    """A file that does not exist yet, in a folder that only we can enter. Raises OSError."""
    _remove_leftovers()
    with ExitStack() as held:
        folder = None
        while folder is None:
            folder = _own_folder(held)
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder / "meeting"


def _own_folder(held: ExitStack) -> Path | None:
    """A new folder, locked as long as `held`; None if another worker took it for a leftover meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    with suppress(FileNotFoundError):
        held.callback(os.close, handle := _opened(folder))
        fcntl.flock(handle, fcntl.LOCK_EX)
    return folder if folder.exists() else None


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or just removed
            handle = _opened(folder)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _opened(folder: Path) -> int:
    """No link is followed: anybody may put one into a folder for temporary files."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
