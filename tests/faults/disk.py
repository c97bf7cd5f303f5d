"""A disk of its own for a test, which can be read-only, die, or lose its power."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chaos import disk as loop

SIZE = 256 * 2**20


@dataclass
class Disk:
    """`path` is where it is mounted."""

    disk: loop.Disk
    _copies: list[loop.Disk] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.disk.path

    def after_power_cut(self, name: str = "cut") -> Path:
        """A second disk that holds what has reached the device by now, and nothing of what the kernel still
        keeps in memory. This one goes on.
        """
        copy = loop.Disk(self.disk.image.with_name(f"{name}.img"), self.path.with_name(name))
        subprocess.run(["cp", "--sparse=always", str(self.disk.image), str(copy.image)], check=True)
        copy.path.mkdir()
        copy.mount()
        self._copies.append(copy)
        return copy.path

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def writable(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)

    def fail(self) -> None:
        """As when the device dies: whatever is not in memory fails with EIO."""
        self.disk.cut_power()

    def repair(self) -> None:
        """Put the device back, as it was when it failed."""
        self.disk.unmount()
        self.disk.mount()

    def close(self) -> None:
        for copy in self._copies:
            copy.unmount()


@contextmanager
def disk_in(folder: Path, size: int = SIZE) -> Iterator[Disk]:
    """Skips the test where mounting is not allowed."""
    try:
        with loop.disk_in(folder, size) as made:
            disk = Disk(made)
            try:
                yield disk
            finally:
                disk.close()
    except loop.NoDisk as reason:
        pytest.skip(str(reason))
