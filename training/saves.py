"""The folders that a run saves: each is whole or not there, also after a kill or a power cut while saving.

A folder is written under a hidden name beside its place, brought to the disk (fsync) and renamed. The last
two stay, so a save that is lost costs the steps since the one before it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

KEPT_SAVES = 2
STEP_FOLDER = re.compile(r"step-(\d+)")


def step_folder(parent: Path, step: int) -> Path:
    """Where the save after so many steps belongs."""
    return parent / f"step-{step:08d}"


def saved_steps(parent: Path) -> list[Path]:
    """The whole saves in a folder, oldest first."""
    if not parent.is_dir():
        return []
    return sorted(folder for folder in parent.iterdir() if STEP_FOLDER.fullmatch(folder.name))


def begin(folder: Path) -> Path:
    """Make and return the hidden folder to write into. What a broken save left of it is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, folder: Path) -> None:
    """Put what was written in its place, once all of it is on the disk."""
    for path in [*partial.rglob("*"), partial]:
        _to_disk(path)
    if folder.exists():
        before = folder.with_name(f".{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        partial.rename(folder)
        shutil.rmtree(before)
    else:
        partial.rename(folder)
    _to_disk(folder.parent)


def point(link: Path, folder: Path) -> None:
    """Let the symbolic link lead to a folder. A reader always finds the old folder or the new one."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    partial.replace(link)
    _to_disk(link.parent)


def forget_old(parent: Path, also_kept: Iterable[Path] = ()) -> None:
    """Delete all saves but the last two and those named, and what broken saves left."""
    kept = {*saved_steps(parent)[-KEPT_SAVES:], *also_kept}
    for folder in parent.iterdir():
        name = folder.name.removeprefix(".").partition(".")[0]
        if STEP_FOLDER.fullmatch(name) and folder not in kept:
            shutil.rmtree(folder)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
