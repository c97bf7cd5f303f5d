"""Local copies of what lies in a remote store, up to a number of bytes."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IN_USE_S: Final = 60.0
"""Whoever was given a path opens it, or makes a link to it, within this time."""


@dataclass(frozen=True)
class LocalCache:
    """A folder of copies, which the processes of one machine may share. What was not used for longest goes
    first. Files that were used a moment ago stay, even if they are too much together.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, download: Callable[[Path], None]) -> Path:
        """The copy of that name, which `download` writes if it is missing. Raises what `download` raises."""
        path = self.folder / name
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            temporary.touch(mode=0o600)
            download(temporary)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._shrink()
        return path

    def take(self, source: Path, name: str) -> None:
        """Move a local file of the same file system here."""
        os.utime(source)
        source.rename(self.folder / name)
        self._shrink()

    def _shrink(self) -> None:
        now, files = time.time(), []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):  # not "lost+found"
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for used_at, size, path in sorted(files):
            if total <= self.max_bytes or now - used_at < IN_USE_S:
                return
            path.unlink(missing_ok=True)
            total -= size
