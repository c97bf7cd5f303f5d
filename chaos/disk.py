"""A disk whose power can be cut: an ext4 image on a loop device. Needs root and mkfs.ext4."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BYTES = 2**30
_EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_UNMOUNT_S = 10.0
_MOUNT_TRIES = 5
"""Somebody else may take the loop device that `mount` has found free."""


class NoDisk(Exception):
    """This machine does not allow such a disk. The message says what is missing."""


@dataclass
class Disk:
    """The ext4 image `image`, mounted at `path`."""

    image: Path
    path: Path

    def mount(self) -> None:
        """Raises NoDisk."""
        command = ["mount", "-o", "loop", str(self.image), str(self.path)]
        for _ in range(_MOUNT_TRIES):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            time.sleep(0.2)
        raise NoDisk(f"an image cannot be mounted here, which needs root: {done.stderr.strip()}")

    def unmount(self) -> None:
        """Unmount. If some files stay open, the disk goes away when the last of them is closed."""
        until = time.monotonic() + _UNMOUNT_S
        while subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > until:
                subprocess.run(["umount", "--lazy", str(self.path)], check=True)
                return
            time.sleep(0.1)

    def cut_power(self) -> None:
        """Cut the power: nothing reaches the device any more, and every access gets EIO.

        Data that the kernel had not yet written is lost. `unmount` and `mount` bring the power back.

        Source: EXT4_IOC_SHUTDOWN with NOLOGFLUSH, by which xfstests tests file systems for power cuts.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(descriptor)


@contextmanager
def disk_in(folder: Path, size: int = BYTES) -> Iterator[Disk]:
    """An empty disk, which is unmounted and removed at the end. Raises NoDisk."""
    if shutil.which("mkfs.ext4") is None:
        raise NoDisk("mkfs.ext4 is not installed (Debian: e2fsprogs)")
    folder.mkdir(parents=True, exist_ok=True)
    disk = Disk(folder / "disk.img", folder / "disk")
    disk.path.mkdir(exist_ok=True)
    with disk.image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk.image)], check=True, capture_output=True)
    try:
        disk.mount()
        try:
            yield disk
        finally:
            disk.unmount()
    finally:
        disk.image.unlink()
