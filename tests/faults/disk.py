"""A disk of its own for a test: an ext4 image on a loop device, whose power can be cut."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SIZE = 256 * 2**20
_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): from then on everything fails with EIO
_NO_LOG_FLUSH = 2


@dataclass
class Disk:
    """`path` is where it is mounted."""

    folder: Path
    path: Path
    image: Path
    _mounted: list[Path] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, size: int = SIZE) -> Disk:
        """Skips the test where mounting is not allowed."""
        folder.mkdir(parents=True, exist_ok=True)
        disk = cls(folder, folder / "disk", folder / "disk.img")
        with disk.image.open("wb") as file:
            file.truncate(size)
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("making a disk needs mkfs.ext4")
        _run("mkfs.ext4", "-q", "-F", str(disk.image))
        disk.path.mkdir()
        if not disk._mount(disk.image, disk.path):
            pytest.skip("mounting an image needs root and a loop device")
        return disk

    def _mount(self, image: Path, target: Path, *options: str) -> bool:
        words = ("mount", "-o", ",".join(("loop", *options)), str(image), str(target))
        if subprocess.run(words, capture_output=True, check=False).returncode != 0:
            return False
        self._mounted.append(target)
        return True

    def after_power_cut(self, name: str = "cut") -> Path:
        """A second disk that holds what this one would if its power went now: what has reached the device,
        and nothing of what the kernel still keeps in memory.
        """
        image, target = self.folder / f"{name}.img", self.folder / name
        _run("cp", "--sparse=always", str(self.image), str(image))
        target.mkdir()
        assert self._mount(image, target), "a copy of the image mounts like the image"
        return target

    def read_only(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.path))

    def writable(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.path))

    def fail(self) -> None:
        """As when the device dies: every access to what is not in memory fails with EIO, for good."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(descriptor)

    def repair(self) -> None:
        """Put the device back, as it was when it failed, for those who open their files anew."""
        _run("umount", "--lazy", str(self.path))
        self._mounted.remove(self.path)
        assert self._mount(self.image, self.path)

    def close(self) -> None:
        for target in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", str(target)], check=False)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def disk_in(folder: Path, size: int = SIZE) -> Iterator[Disk]:
    disk = Disk.create(folder, size)
    try:
        yield disk
    finally:
        disk.close()
