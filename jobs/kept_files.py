"""Files that clients keep on the server to submit them repeatedly. They are decoded, by owner and content."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from contract.frozen import Frozen
from contract.job import StoredFile
from jobs.artifacts import ArtifactStore, NoFileOfOurs

FILE_ID: Final = re.compile(r"file_[0-9a-v]{36}")
LINGERS_S: Final = 3600.0
"""How long a file that has expired is still there, for requests that found it before."""
OWNER: Final = re.compile(r"[0-9a-z]+")
FILES_FOLDER: Final = "files"
_RECORD: Final = "file.json"


class FileNotKept(Exception):
    """This owner keeps no such file: it never existed, was deleted, or has expired."""


class KeptFile(Frozen):
    """A decoded file that its owner may name in a submit."""

    id: str
    owner: str
    kind: str
    """image, audio or video."""
    received_sha256: str
    """SHA-256 of the file as it was sent."""
    received_bytes: int
    decoded: StoredFile
    """The decoded file. `name` is relative to the folder of the kept file."""
    answer: Mapping[str, Any]
    """The decoder's answer about the file."""
    created_at: datetime
    expires_at: datetime

    @property
    def key(self) -> str:
        """Where the decoded file lies in the store."""
        return f"{_prefix(self.owner, self.id)}/{self.decoded.name}"


def file_id(owner: str, kind: str, received_sha256: str) -> str:
    """The id of a file. It is the same for the same owner, kind and content."""
    digest = hashlib.sha256(f"{owner}/{kind}/{received_sha256}".encode()).digest()
    return "file_" + base64.b32hexencode(digest).decode().lower()[:36]


@dataclass(frozen=True)
class KeptFiles:
    """The kept files of a store."""

    store: ArtifactStore

    def put(self, file: KeptFile, folder: Path) -> bool:
        """Keep the decoded file in the local folder `folder`. Raises OSError.

        False if another submit was faster. Its file is then kept until the new `expires_at`. One that has
        expired is replaced.
        """
        (folder / _RECORD).write_text(file.model_dump_json(), encoding="utf-8")
        while True:
            try:
                self.store.adopt_folder(folder, _prefix(file.owner, file.id))
                return True
            except FileExistsError:
                with suppress(FileNotKept):
                    self.get(file.owner, file.id, file.created_at)
                    self.keep_on(file)
                    return False
                self.remove(file)

    def keep_on(self, file: KeptFile) -> None:
        """Keep a file until the new `expires_at`. Raises FileNotKept, OSError."""
        try:
            self.store.write(record_key(file.owner, file.id), file.model_dump_json().encode())
        except FileNotFoundError as error:
            raise FileNotKept(file.id) from error

    def get(self, owner: str, file: str, now: datetime) -> KeptFile:
        """Raises FileNotKept, OSError."""
        found = self._read(owner, file) if FILE_ID.fullmatch(file) else None
        if found is None or found.expires_at <= now:
            raise FileNotKept(file)
        return found

    def of(self, owner: str, now: datetime) -> list[KeptFile]:
        """All files that an owner keeps, newest first. Raises OSError."""
        names = [name for name in self.store.list_names(f"{FILES_FOLDER}/{owner}") if FILE_ID.fullmatch(name)]
        found = (self._read(owner, name) for name in names)
        kept = [file for file in found if file is not None and file.expires_at > now]
        return sorted(kept, key=lambda file: (file.created_at, file.id), reverse=True)

    def remove(self, file: KeptFile) -> None:
        """Remove a file. Jobs that were submitted with it have copies. Raises OSError."""
        self.store.remove_folder(_prefix(file.owner, file.id))

    def expire(self, now: float) -> None:
        """Remove what had expired `LINGERS_S` before `now`. Raises OSError."""
        for owner in self.store.list_names(FILES_FOLDER):
            if not OWNER.fullmatch(owner):
                self.store.passed_over.note("stray", f"{FILES_FOLDER}/{owner}", "not the name of an owner")
                continue
            for name in self.store.list_names(f"{FILES_FOLDER}/{owner}"):
                file = self._read(owner, name)
                if file is not None and file.expires_at.timestamp() + LINGERS_S <= now:
                    self.remove(file)

    def _read(self, owner: str, name: str) -> KeptFile | None:
        try:
            data = self.store.read(record_key(owner, name))
            return None if data is None else KeptFile.stored(data)
        except (ValueError, NoFileOfOurs) as error:
            self.store.passed_over.note("stray", _prefix(owner, name), error)
            return None


def record_key(owner: str, file: str) -> str:
    """The key of the record that says what a kept file is."""
    return f"{_prefix(owner, file)}/{_RECORD}"


def _prefix(owner: str, file: str) -> str:
    return f"{FILES_FOLDER}/{owner}/{file}"
