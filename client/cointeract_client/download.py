"""A download that goes on where it was cut off. The file appears only once it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cointeract_client.errors import DownloadDamaged


@dataclass
class Download:
    """Writes to a file beside `target`, and renames it at the end."""

    target: Path
    received: int = 0
    etag: str | None = None
    total: int | None = None

    @property
    def partial(self) -> Path:
        """The file that holds the bytes until all have arrived."""
        return self.target.with_name(f".{self.target.name}.part")

    def headers(self) -> dict[str, str]:
        """Headers that ask for the whole file, or for the rest of the same file."""
        if not self.received or self.etag is None:
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.etag}

    def begin(self, status: int, headers: Mapping[str, str]) -> BinaryIO:
        """Open the file that an answer's body is written to."""
        if status != 206:  # The whole file: this is the first answer, or the file has changed meanwhile.
            self.received, self.etag = 0, headers.get("etag")
            length = headers.get("content-length")
            self.total = None if length is None else int(length)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        return self.partial.open("r+b" if self.received else "wb")

    def finish(self) -> Path:
        """Move the complete file to `target`. Raises DownloadDamaged if bytes are missing."""
        if self.total is not None and self.received != self.total:
            raise DownloadDamaged(f"{self.target.name}: {self.received} of {self.total} bytes arrived")
        self.partial.replace(self.target)
        return self.target
