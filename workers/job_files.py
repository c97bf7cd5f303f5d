"""The files of the job that an attempt renders, written and found however storage fares."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from contract.job import StoredFile
from jobs.artifacts import DISK_FULL, STORAGE_AWAY, ArtifactStore
from jobs.journal import file_key

log = logging.getLogger(__name__)

Written = TypeVar("Written")

_WORTH_ANOTHER_TRY = STORAGE_AWAY | {errno.ENOENT}
"""A file system that was away for a moment has none of our folders, and may be back when we look."""

MOST_OWN_FAILURES = 10
"""How often in a row one file may fail while the rest of storage works."""


class Superseded(Exception):
    """The job was canceled or removed, or another attempt has it. The work of this attempt is of no use."""


@dataclass(frozen=True)
class JobFiles:
    """The files of one job."""

    store: ArtifactStore
    job_id: str
    about: Mapping[str, object]
    """Goes with log lines."""
    pause: Callable[[], None]
    """Waits a moment before the next try. Raises if the attempt must end."""
    folder: Path
    """Of the attempt, in scratch."""

    def storage_works(self) -> bool:
        try:
            self.store.check()
        except OSError:
            return False
        return True

    def durably(self, write: Callable[[], Written]) -> Written:
        """Call `write()` again and again while storage is full or away: a finished clip is too costly to
        lose.
        """
        tries = own_failures = 0
        while True:
            try:
                return write()
            except OSError as error:
                # A full storage may have room for the few bytes of a check, so the check is of use for other
                # errors only.
                if error.errno not in DISK_FULL and self.storage_works():
                    own_failures += 1
                if error.errno not in _WORTH_ANOTHER_TRY or own_failures > MOST_OWN_FAILURES:
                    raise
                what = "the disk is full" if error.errno in DISK_FULL else f"storage fails ({error.strerror})"
            if not tries:
                log.error("%s; trying again until it works", what, extra=dict(self.about))
            tries += 1
            self.pause()

    def put(self, path: Path, name: str, media_type: str) -> StoredFile:
        """Move a local file to the job, durably. Raises Superseded if the job was removed."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        stored = StoredFile(name=name, sha256=digest, size=path.stat().st_size, media_type=media_type)
        if not self.durably(lambda: self.store.put_file(path, file_key(self.job_id, stored))):
            raise Superseded("the job was removed")
        return stored

    def drop(self, file: StoredFile | None) -> None:
        """Remove a file that nobody needs now. If that fails, it is removed with its job."""
        if file is not None:
            with suppress(OSError):
                self.store.remove(file_key(self.job_id, file))

    def local(self, file: StoredFile) -> Path:
        """Where a file of the job can be read as long as the attempt lasts. Raises Superseded if the job was
        removed.
        """
        target = self.folder / "stored" / file.name
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.store.fetch(file_key(self.job_id, file), target)
            return target
        except FileNotFoundError:
            raise Superseded(f"{file.name} is gone: the job was removed") from None

    def local_or_none(self, file: StoredFile | None) -> Path | None:
        return None if file is None else self.local(file)
