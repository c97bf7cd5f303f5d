"""How much main memory there is: the machine's, or the limit of the control group around us."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.doctor import inspect_machine
from model.memory.host import host_memory_bytes

GIB = 2**30
INSTALLED = host_memory_bytes(Path("/nowhere"))


def tree(root: Path, membership: str, limits: dict[str, str]) -> Path:
    """A `/proc` and `/sys` that say so."""
    for path, text in {"proc/self/cgroup": membership, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": str(GIB)}, GIB),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, INSTALLED),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": str(GIB)}, GIB),
        ("0::/docker/x", {"sys/fs/cgroup/memory.max": str(GIB)}, GIB),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:cpu,memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/docker/x", {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)}, INSTALLED),
        ("4:memory:/\n0::/", {"sys/fs/cgroup/unified/memory.max": str(GIB)}, GIB),
        ("5:cpu:/", {}, INSTALLED),
        ("", {}, INSTALLED),
    ],
)
def test_the_smallest_memory_limit_counts(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int
) -> None:
    assert host_memory_bytes(tree(tmp_path, membership, limits)) == expected


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own, with a limit of 1 GiB."""
    for top, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup") / top / "cointeract-test"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(GIB))
            yield folder
            return
        except OSError:
            continue
        finally:
            folder.rmdir()
    pytest.skip("making a control group with a limit needs root")


def test_a_process_in_a_group_with_a_limit_sees_the_limit(group: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from model.memory.host import host_memory_bytes\n"
        "print(host_memory_bytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(group)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == GIB


def test_doctor_reads_it_with_the_worker_s_own_function() -> None:
    assert inspect_machine().host_bytes == host_memory_bytes()
