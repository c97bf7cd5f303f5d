"""The supervisor: a small process per device that keeps a child with the model alive and speaks for it.

It imports no torch and does nothing that could block, so its heartbeats are true even while the child's
interpreter is stuck in one long call. It reads the child's reports, renews its leases in Redis, restarts it
when it dies, stops it when it stalls, and records in the journal what the child no longer could.
"""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from contract.card import CARD_FILE, CheckpointCard
from contract.entries import InterruptReason
from contract.job import Stage
from contract.memory import MemoryMode
from contract.processes import last_words, own_process
from contract.settings import Settings
from contract.worker import RunningJob
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from jobs.identity import process_name
from jobs.journal import Journal
from jobs.logs import configure_logging
from jobs.queue import JobQueue
from workers.heartbeat import Heartbeat
from workers.last_words import LastWords
from workers.lost_attempts import end_attempt
from workers.messages import (
    MESSAGE,
    ChildConfig,
    ClipDone,
    Ended,
    Message,
    Progressed,
    Ready,
    Unloadable,
    Working,
)
from workers.metrics import ATTEMPTS, CHILD_DEATHS, CLIP_SECONDS, MEMORY_FALLS, serve_metrics, show_attention

log = logging.getLogger(__name__)

DEATHS_IN_A_LOOP = 4
"""So many deaths in a row before a child was steady are a loop: one more than a single job causes."""
STEADY_AFTER_S = 10.0
"""A child is steady once it has been ready for so long, or has finished an attempt."""
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
CHILD_POLL_S = 0.25
PUBLISH_RETRY_S = 5.0


@dataclass
class Child:
    """A running child process and what it last reported."""

    process: subprocess.Popen[bytes]
    reports: int
    """Read end of its pipe, non-blocking."""
    words: LastWords
    last_report_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    has_finished_an_attempt: bool = False
    problem: str | None = None
    running: RunningJob | None = None
    unread: bytes = b""

    @property
    def ready(self) -> bool:
        return self.ready_at is not None

    @property
    def is_steady(self) -> bool:
        """Whether the child has shown that it can work."""
        long_ready = self.ready_at is not None and time.monotonic() - self.ready_at > STEADY_AFTER_S
        return long_ready or self.has_finished_an_attempt

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
        self.words.text()  # passes on all of them
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
        self.name = process_name(name or socket.gethostname())
        self.card = CheckpointCard.model_validate_json((self.folder / CARD_FILE).read_bytes())
        if checkpoint is not None:  # served under another name than the card's
            self.card = self.card.model_copy(update={"name": checkpoint})
        self.store = FolderStore(settings.storage_dir)
        self.journal = Journal(self.store)
        self.queue = JobQueue(settings, redis_url)
        self.heartbeat = Heartbeat(settings, self.queue, self.name, self.card.name, device)
        self._memory_mode: MemoryMode | None = None
        """What the next child loads its model in; None: the fastest mode that fits."""
        self._problem: str | None = None
        self._deaths = 0
        """Deaths in a row of children that were never steady."""
        self._card_is_published = False
        self._next_publish = 0.0
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe()

    def stop(self) -> None:
        """Ask `run` to end. A signal handler may call this."""
        self._stopping.set()
        os.write(self._wake_write, b"x")

    def run(self) -> None:
        """Supervise until `stop`. At the end the child has put its job back, or was killed."""
        self._publish_card()
        self.heartbeat.start()
        try:
            while not self._stopping.is_set():
                child = self._start_child()
                try:
                    self._watch(child)
                    self._bury(child)
                finally:
                    child.close()
                if self._stopping.is_set():
                    break
                # Only what fails by itself is tried again slowly: a job must not delay the next one.
                if not child.ready or self._deaths >= DEATHS_IN_A_LOOP:
                    self._stopping.wait(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._deaths, 10)))
        finally:
            self.heartbeat.stop()

    def _publish_card(self) -> None:
        """Tell the server what this worker renders, again and again while storage fails."""
        if self._card_is_published or time.monotonic() < self._next_publish:
            return
        try:
            tokenizer = self.folder / "tokenizer" / "tokenizer.json"
            publish_card(self.store, self.card, tokenizer.read_bytes() if tokenizer.is_file() else None)
            self._card_is_published = True
        except OSError as error:
            log.error("the checkpoint's card cannot be published: %s", error)
            self._next_publish = time.monotonic() + PUBLISH_RETRY_S

    def _start_child(self) -> Child:
        reports, child_end = os.pipe()
        os.set_blocking(reports, False)
        words, words_end = os.pipe()
        config = ChildConfig(
            settings=self.settings,
            redis_url=self.redis_url,
            name=self.name,
            checkpoint=self.card.name,
            folder=self.folder,
            device=self.device,
            memory_mode=self._memory_mode,
            parent_pid=os.getpid(),
            report_fd=child_end,
        )
        process = subprocess.Popen(
            own_process("workers.child"),
            stdin=subprocess.PIPE,
            stderr=words_end,
            pass_fds=[child_end],
            # Threads that wait must sleep. Where cores are shared, spinning takes four times the CPU.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        os.close(child_end)
        os.close(words_end)
        last_words = LastWords(words)
        last_words.start()
        # Over the pipe, not the command line: the Redis URL may hold a password.
        stdin: IO[bytes] | None = process.stdin
        assert stdin is not None
        try:
            stdin.write(config.model_dump_json().encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            log.error("the child died before it read its configuration")
        return Child(process, reports, last_words)

    def _watch(self, child: Child) -> None:
        """Follow the child until it ends, or until we end it."""
        stop_at: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(child.reports, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(CHILD_POLL_S)}
                self._publish_card()
                if child.reports in ready:
                    messages = child.receive()
                    if messages is None:
                        break
                    for message in messages:
                        self._take_note(child, message)
                if self._stopping.is_set():
                    if stop_at is None:
                        selector.unregister(self._wake_read)
                        child.process.terminate()
                        stop_at = time.monotonic() + self.settings.stop_grace_s
                    elif time.monotonic() > stop_at:
                        log.error("the child did not stop in %g s; killing it", self.settings.stop_grace_s)
                        child.process.kill()
                        break
                self._judge(child)
                if self._is_stalled(child):
                    self._end_stalled(child)
                    break
        try:
            child.process.wait(5)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()

    def _take_note(self, child: Child, message: Message) -> None:
        child.last_report_at = time.monotonic()
        match message:
            case Ready():
                child.ready_at = time.monotonic()
                self.heartbeat.attention = message.attention
                show_attention(message.attention)
                self.heartbeat.memory_mode = message.memory_mode
                if self._deaths < DEATHS_IN_A_LOOP:
                    self._problem = None
                log.info("the model is loaded", extra={"checkpoint": self.card.name})
            case Unloadable():
                child.problem = message.cause
            case Working():
                child.running = message.running
            case Progressed():
                if child.running is not None:
                    child.running = child.running.model_copy(update={"progress": message.progress})
            case ClipDone():
                CLIP_SECONDS.observe(message.seconds)
                self.heartbeat.speed = message.speed or self.heartbeat.speed
            case Ended():
                child.running = None
                child.has_finished_an_attempt = True
                ATTEMPTS.labels(message.outcome, message.stage, message.cause).inc()
                if message.fall_back is not None:
                    self._fall_back(message.fall_back)
        self._judge(child)
        self.heartbeat.update(child.ready, child.running, self._problem)

    def _fall_back(self, mode: MemoryMode) -> None:
        """Go on in a mode that needs less of the device's memory, until this worker is restarted: the next
        large job would only run out of it again.
        """
        self._memory_mode = mode
        MEMORY_FALLS.labels(mode).inc()
        log.warning(
            "out of device memory; from now on in mode %s", mode, extra={"checkpoint": self.card.name}
        )

    def _judge(self, child: Child) -> None:
        """Forget earlier deaths once a child works."""
        if child.is_steady and self._deaths:
            self._deaths, self._problem = 0, None
            self.heartbeat.update(child.ready, child.running, None)

    def _is_stalled(self, child: Child) -> bool:
        busy = child.running is not None or not child.ready
        return busy and time.monotonic() - child.last_report_at > self.settings.stall_timeout_s

    def _end_stalled(self, child: Child) -> None:
        seconds = self.settings.stall_timeout_s
        log.error("no progress for %g s; killing the child", seconds)
        child.process.kill()
        child.process.wait()
        if not child.ready:
            child.problem = f"it was not loaded within {seconds:g} s (COINTERACT_STALL_TIMEOUT_S)"
        if child.running is not None:
            self._record(
                child, child.running, "stalled", f"no progress for {seconds:g} s", burns_attempt=True
            )
            child.running = None

    def _bury(self, child: Child) -> None:
        """Record the end of what the dead child was doing."""
        while messages := child.receive():
            for message in messages:
                self._take_note(child, message)
        status = child.process.returncode
        if child.running is not None:
            if self._stopping.is_set():
                self._record(child, child.running, "shutdown", "the worker was stopped", burns_attempt=False)
            else:
                cause = _describe(status)
                self._record(
                    child, child.running, "child_died", f"the worker process {cause}", burns_attempt=True
                )
        if not self._stopping.is_set():
            CHILD_DEATHS.inc()
            log.warning("the child %s; starting another", _describe(status))
            self._deaths = 0 if child.is_steady else self._deaths + 1
            self._problem = self._why_it_died(child)
        self.heartbeat.update(False, None, self._problem)

    def _why_it_died(self, child: Child) -> str | None:
        """Why the child died, if that was no accident; None if it was."""
        if child.problem is not None:
            return f"The worker cannot load its model: {child.problem}"
        if child.ready and self._deaths < DEATHS_IN_A_LOOP:
            return None
        said = last_words(child.words.text())
        cause = _describe(child.process.returncode) + (f". Its last words:\n{said}" if said else ", silently")
        if not child.ready:
            return f"The worker cannot load its model: the process that loads it {cause}"
        return f"The worker's process keeps dying, {self._deaths} times in a row by now: it {cause}"

    def _record(
        self, child: Child, running: RunningJob, reason: InterruptReason, message: str, *, burns_attempt: bool
    ) -> None:
        stage: Stage = running.progress.stage
        try:
            end_attempt(
                self.journal,
                self.queue,
                running.job_id,
                running.attempt,
                reason=reason,
                message=message,
                burns_attempt=burns_attempt,
                max_attempts=self.settings.max_attempts,
                stage=stage,
            )
        except OSError as error:
            # The reaper finds an attempt that nobody works on, and records this when it can.
            log.error("cannot write to storage: %s", error, extra={"job_id": running.job_id})
        ATTEMPTS.labels("interrupted", stage, reason).inc()


def _describe(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL: by hand, or by the kernel when memory ran out)"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


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
    parser = argparse.ArgumentParser(
        prog="python -m workers.supervisor", description="A worker for one device."
    )
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
