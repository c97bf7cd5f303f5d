"""How much main memory this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def host_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of the machine, or the smallest limit of the container or control group that we run in.

    Source: cgroups(7). Version 2 has one tree ("0::/path", `memory.max`), version 1 one for memory
    ("4:memory:/path", `memory.limit_in_bytes`). A limit higher up in the tree counts, too.
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    # A container may see its own group as the top of the tree, whatever path /proc tells.
    yield from _limits_up(groups, "/", "memory.max")
    yield from _limits_up(groups / "memory", "/", "memory.limit_in_bytes")
    for line in filter(None, lines):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for tree in (groups, groups / "unified"):
                yield from _limits_up(tree, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_up(groups / "memory", path, "memory.limit_in_bytes")


def _limits_up(tree: Path, path: str, name: str) -> Iterator[int]:
    """The limits of a group and of all above it."""
    group = tree / path.lstrip("/")
    for folder in (group, *group.parents):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            text = "max"
        if text.isdecimal():
            yield int(text)
        if folder == tree:
            return
