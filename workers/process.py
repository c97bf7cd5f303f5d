"""A process of a worker as its supervisor holds it: what it reports, its last words, and how it ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from contract.processes import own_process
from workers.last_words import LastWords
from workers.messages import MESSAGE, ChildConfig, Message

log = logging.getLogger(__name__)


@dataclass
class WorkerProcess:
    """A running process."""

    process: subprocess.Popen[bytes]
    reports: int
    """Read end of its pipe, non-blocking."""
    words: LastWords
    unread: bytes = b""

    @classmethod
    def start(cls, module: str, config: Callable[[int], ChildConfig], environment: Mapping[str, str]) -> Self:
        """Run a module of ours; `config` makes its configuration, given where it is to report."""
        reports, process_end = os.pipe()
        os.set_blocking(reports, False)
        words, words_end = os.pipe()
        process = subprocess.Popen(
            own_process(module),
            stdin=subprocess.PIPE,
            stderr=words_end,
            pass_fds=[process_end],
            env={**environment, **os.environ},
        )
        os.close(process_end)
        os.close(words_end)
        last_words = LastWords(words)
        last_words.start()
        # Over the pipe, not the command line: the Redis URL may hold a password.
        stdin: IO[bytes] | None = process.stdin
        assert stdin is not None
        try:
            stdin.write(config(process_end).model_dump_json().encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            log.error("the process died before it read its configuration")
        return cls(process, reports, last_words)

    def receive(self) -> list[Message] | None:
        """New messages; None when the process has closed its end."""
        try:
            data = os.read(self.reports, 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [MESSAGE.validate_json(line) for line in lines]

    def end(self, patience_s: float = 0.0) -> None:
        """Wait for its end so long, then kill it."""
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it, by SIGSTOP or a debugger. Known on Linux only."""
        try:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state in "Tt"

    def close(self) -> None:
        self.words.text()  # passes on all of them
        os.close(self.reports)
        stdin = self.process.stdin
        if stdin is not None:
            stdin.close()


def describe_end(status: int) -> str:
    """How a process ended, to follow its name."""
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL: by hand, or by the kernel when memory ran out)"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
