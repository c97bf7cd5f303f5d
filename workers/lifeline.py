"""A process of a worker lives no longer than its supervisor."""

from __future__ import annotations

import os
import signal
import sys
import threading

from contract.processes import die_with_parent


def end_with_supervisor(parent_pid: int) -> None:
    """End when the supervisor has ended, in whatever way: nobody would send our heartbeats."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit("the supervisor is gone")

    def wait_for_end_of_input() -> None:
        # Not sys.stdin: its lock, held here for good, would abort the interpreter when the main thread ends.
        while os.read(sys.stdin.fileno(), 4096):
            continue
        os._exit(1)

    # For what the kernel does not cover: a supervisor in another container, and macOS.
    threading.Thread(target=wait_for_end_of_input, daemon=True, name="parent-watch").start()
