"""The supervisor: one small process per device that keeps a child with the model alive and speaks for it.

It imports no torch and does nothing that could block, so its heartbeats tell the truth about the child even
while the child's interpreter is stuck in one long call. It reads the child's reports, renews its leases in
Redis, restarts it when it dies, stops it when it stalls, and writes down in the journal what the child no
longer could.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from jobs.artifacts import FolderStore
from jobs.cards import CARD_FILE, publish_card
from jobs.contract import CheckpointCard, InterruptReason, RunningJob, Stage
from jobs.journal import Journal
from jobs.logs import configure_logging
from jobs.queue import JobQueue
from jobs.settings import Settings
from workers.attempts import end_attempt
from workers.heartbeat import Heartbeat
from workers.messages import MESSAGE, ChildConfig, ClipDone, Ended, Message, Progressed, Ready, Working
from workers.metrics import ATTEMPTS, CHILD_DEATHS, CLIP_SECONDS, serve_metrics

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
POLL_S = 0.25


@dataclass
class Child:
    """A running child process and what it last reported."""

    process: subprocess.Popen[bytes]
    reports: int
    """Read end of its pipe, non-blocking."""
    started_at: float = field(default_factory=time.monotonic)
    last_report_at: float = field(default_factory=time.monotonic)
    ready: bool = False
    running: RunningJob | None = None
    unread: bytes = b""

    def receive(self) -> list[Message] | None:
        """New messages; None when the child has closed its end."""
        try:
            data = os.read(self.reports, 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [MESSAGE.validate_json(line) for line in lines]

    def close(self) -> None:
        os.close(self.reports)
        stdin = self.process.stdin
        if stdin is not None:
            stdin.close()


class Supervisor:
    """Runs one child after another for `folder` on `device` until `stop` is called."""

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        folder: Path,
        device: str,
        name: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.settings = settings
        self.redis_url = redis_url
        self.folder = folder.resolve()
        self.device = device
        # Unique, so that a new process can never be taken for the one whose job it finds.
        self.name = f"{name or socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.card = CheckpointCard.model_validate_json((self.folder / CARD_FILE).read_bytes())
        if checkpoint is not None:  # served under another name than its card's
            self.card = self.card.model_copy(update={"name": checkpoint})
        self.store = FolderStore(settings.storage_dir)
        self.journal = Journal(self.store)
        self.queue = JobQueue(settings, redis_url)
        self.heartbeat = Heartbeat(settings, self.queue, self.name, self.card.name, device)
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe()

    def stop(self) -> None:
        """Ask `run` to end; may be called from a signal handler."""
        self._stopping.set()
        os.write(self._wake_write, b"x")

    def run(
    settings: Settings,
    redis_url: str,
    folder: Path,
    device: str,
    name: str | None = None,
    checkpoint: str | None = None,
) -> None:
    """Run a worker in this process until SIGTERM or SIGINT. Main thread only."""
    supervisor = Supervisor(settings, redis_url, folder, device, name, checkpoint)

    def stop(signum: int, frame: FrameType | None) -> None:
        supervisor.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if settings.worker_metrics_port is not None:
        serve_metrics(settings.worker_metrics_port)
    supervisor.run()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.main", description="A worker for one device.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, …")
    parser.add_argument("--name", help="how the worker is called in logs")
    options = parser.parse_args(arguments)
    settings = Settings()
    if settings.redis_url is None:
        parser.error("set COINTERACT_REDIS_URL")
    configure_logging(settings)
    run(settings, settings.redis_url, options.checkpoint, options.device, options.name)


if __name__ == "__main__":
    main()
