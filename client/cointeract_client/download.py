"""A download that goes on where it was cut off, and shows itself only when it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cointeract_client.errors import DownloadDamaged


@dataclass
class Download:
    """Writes to a neighbour of `target`, which appears in one step."""

    target: Path
    received: int = 0
    etag: str | None = None
    total: int | None = None

    @property
    def partial(self) -> Path:
        """Where the bytes lie until all of them have arrived."""
        return self.target.with_name(f".{self.target.name}.part")

    def headers(self) -> dict[str, str]:
        """What to ask for: everything, or the rest of the same file."""
        if not self.received or self.etag is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.etag}

    def begin(self, status: int, headers: Mapping[str, str]) -> BinaryIO:
        """The file to write an answer's body to."""
        if status != 206:  # all of it: the first answer, or the file has changed meanwhile
            self.received, self.etag = 0, headers.get("etag")
            length = headers.get("content-length")
            self.total = None if length is None else int(length)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        return self.partial.open("r+b" if self.received else "wb")

    def finish(self) -> Path:
        """The finished file. Raises DownloadDamaged if bytes are missing."""
        if self.total is not None and self.received != self.total:
            raise DownloadDamaged(f"{self.target.name}: {self.received} of {self.total} bytes arrived")
        self.partial.replace(self.target)
        return self.target
