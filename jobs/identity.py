"""Names of processes from which any other on the same machine can tell whether the process still lives.

A lease tells that, too, but only after a while, and only if Redis was there. The name holds a mark of the
kernel and the PID namespace, the process id, and the start time of the process. So neither a recycled id nor
a process in another container or on another machine is taken for the one that the name means.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

REAPER = "reaper"
"""Label of a reaper's process name."""

_NAME = re.compile(r".*\.(?P<space>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)", re.DOTALL)


def process_name(label: str, pid: int | None = None) -> str:
    """A name for this process, or for the one with the id `pid`. No other process ever has the same."""
    pid = pid or os.getpid()
    return f"{label}.{_pid_space()}-{pid}-{_start_time(pid)}"


def pid_of(name: str) -> int | None:
    """The process id in a name. It means something on the machine of the process only."""
    match = _NAME.fullmatch(name)
    return int(match["pid"]) if match else None


def is_surely_dead(name: str) -> bool:
    """True if the process ran where we see all processes, and is not among them. False if we cannot know."""
    match = _NAME.fullmatch(name)
    if match is None or match["space"] != _pid_space():
        return False
    return _start_time(int(match["pid"])) != int(match["start"])


def lives_here(name: str) -> bool:
    """True if the process is among those that we see."""
    match = _NAME.fullmatch(name)
    return (
        match is not None
        and match["space"] == _pid_space()
        and _start_time(int(match["pid"])) == int(match["start"])
    )


def _pid_space() -> str:
    """A mark that two processes share exactly if a process id means the same to both."""
    if sys.platform != "linux":
        return hashlib.sha256(_said_by("sysctl", "-n", "kern.bootsessionuuid").encode()).hexdigest()[:8]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    namespace = Path("/proc/self/ns/pid").readlink()
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot. None if there is none, or only a zombie.

    Seconds since 1970 where there is no /proc.
    """
    if sys.platform != "linux":
        state, _, started = _said_by("ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)).partition(" ")
        if not started or state[0] in "Z":
            return None
        return int(datetime.strptime(" ".join(started.split()), "%a %b %d %H:%M:%S %Y").timestamp())
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, start = fields[0], fields[19]
    return None if state in "ZX" else int(start)


def _said_by(*command: str) -> str:
    """What a system tool prints; "" if it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=environment)
    return answer.stdout.strip()
