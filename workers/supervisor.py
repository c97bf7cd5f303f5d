"""The supervisor: a small process per worker that keeps a child with the model alive and speaks for it.

It imports no torch and does nothing that could block, so its heartbeats are true even while the child's
interpreter is stuck in one long call. It reads the child's reports, renews its leases in Redis, restarts it
when it dies, stops it when it stalls, and records in the journal what the child no longer could. A worker on
several devices has a process for each; the child is the first of them, and when one ends, all start anew.
"""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import shutil
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from contract.card import CARD_FILE, CheckpointCard
from contract.devices import CPU_NAME, SEPARATOR, parse_devices
from contract.entries import InterruptReason
from contract.job import Stage
from contract.memory import MemoryMode
from contract.processes import last_words
from contract.settings import Settings
from contract.worker import RunningJob
from jobs.cards import publish_card
from jobs.clock import Clock, ClockNotTrusted
from jobs.identity import process_name
from jobs.journal import Journal
from jobs.logs import configure_logging
from jobs.queue import JobQueue
from jobs.storage import StoreRefusedError, open_store
from workers.expiry import Expiry
from workers.followers import Followers, LostRank, environment
from workers.gpu_metrics import show_gpus
from workers.heartbeat import Heartbeat
from workers.lost_attempts import end_attempt
from workers.maker import checkpoint_sums
from workers.meeting import meeting_place
from workers.messages import (
    ChildConfig,
    ClipDone,
    Ended,
    Message,
    Progressed,
    Ready,
    Unloadable,
    Working,
)
from workers.metrics import (
    ATTEMPTS,
    CHILD_DEATHS,
    CLIP_SECONDS,
    MEMORY_FALLS,
    OF_WORKER,
    serve_metrics,
    show_attention,
)
from workers.observed import ObservedAttempt
from workers.process import WorkerProcess, describe_end

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
class Child(WorkerProcess):
    """The process that renders, the other ranks that it renders with, and what it last reported."""

    followers: Followers = field(default_factory=Followers)
    lost: LostRank | None = None
    """The other rank that ended, and so ended this one."""
    last_report_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None
    has_finished_an_attempt: bool = False
    problem: str | None = None
    running: RunningJob | None = None
    observed: ObservedAttempt | None = None

    @property
    def ready(self) -> bool:
        return self.ready_at is not None

    @property
    def is_steady(self) -> bool:
        """Whether the child has shown that it can work."""
        long_ready = self.ready_at is not None and time.monotonic() - self.ready_at > STEADY_AFTER_S
        return long_ready or self.has_finished_an_attempt

    @property
    def end_cause(self) -> str:
        """How it ended, to follow "the worker process"."""
        if self.lost is None:
            return describe_end(self.process.returncode)
        return f"was ended because {self.lost.cause}"

    def stopped_ranks(self) -> list[str]:
        """Those that somebody has stopped."""
        return [*(["rank 0"] if self.is_stopped else []), *self.followers.stopped()]


class Supervisor:
    """Runs one child after another for `folder` on `devices` until `stop` is called."""

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        folder: Path,
        devices: tuple[str, ...],
        name: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.settings = settings
        self.redis_url = redis_url
        self.folder = folder.resolve()
        self.devices = devices
        self.name = process_name(name or socket.gethostname())
        self.card = CheckpointCard.model_validate_json((self.folder / CARD_FILE).read_bytes())
        if checkpoint is not None:  # served under another name than the card's
            self.card = self.card.model_copy(update={"name": checkpoint})
        self.store = open_store(settings)
        self.journal = Journal(self.store)
        self.queue = JobQueue(settings, redis_url)
        self.heartbeat = Heartbeat(settings, self.queue, self.name, self.card.name, SEPARATOR.join(devices))
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
        if self.settings.storage_url is not None:  # nobody else sweeps this machine
            self._sweep()
        self.heartbeat.start()
        try:
            while not self._stopping.is_set():
                with nullcontext() if len(self.devices) == 1 else meeting_place() as meeting:
                    child = self._start_child(meeting)
                    try:
                        self._watch(child)
                        self._bury(child)
                    finally:
                        child.followers.kill()
                        child.close()
                if self._stopping.is_set():
                    break
                # Only what fails by itself is tried again slowly: a job must not delay the next one.
                if not child.ready or self._deaths >= DEATHS_IN_A_LOOP:
                    self._stopping.wait(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._deaths, 10)))
        finally:
            self.heartbeat.stop()

    def _sweep(self) -> None:
        clock = Clock(self.store, self.queue.redis)
        try:
            Expiry(self.store, clock).remove_leftovers(clock.now())
        except (ClockNotTrusted, OSError) as error:  # the next start tries again
            log.warning("leftovers stay: %s", error)

    def _publish_card(self) -> None:
        """Tell the server what this worker renders, again and again while storage fails."""
        if self._card_is_published or time.monotonic() < self._next_publish:
            return
        try:
            tokenizer = self.folder / "tokenizer" / "tokenizer.json"
            publish_card(
                self.store,
                self.card,
                tokenizer.read_bytes() if tokenizer.is_file() else None,
                checkpoint_sums(self.folder),
            )
            self._card_is_published = True
        except OSError as error:
            log.error("the checkpoint's card cannot be published: %s", error)
            self._next_publish = time.monotonic() + PUBLISH_RETRY_S

    def _start_child(self, meeting: Path | None) -> Child:
        def config(rank: int, report_fd: int) -> ChildConfig:
            return ChildConfig(
                settings=self.settings,
                redis_url=self.redis_url,
                name=self.name,
                checkpoint=self.card.name,
                folder=self.folder,
                devices=self.devices,
                memory_mode=self._memory_mode,
                rank=rank,
                meeting=meeting,
                parent_pid=os.getpid(),
                report_fd=report_fd,
            )

        child = Child.start("workers.child", partial(config, 0), environment(self.devices))
        child.followers = Followers.start(self.devices, config)
        return child

    def _watch(self, child: Child) -> None:
        """Follow the child until it ends, or until we end it."""
        stop_at: float | None = None
        with selectors.DefaultSelector() as selector:
            for readable in (child.reports, self._wake_read, *child.followers.fds()):
                selector.register(readable, selectors.EVENT_READ)
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
                        for readable in (self._wake_read, *child.followers.fds()):
                            selector.unregister(readable)
                        child.process.terminate()
                        stop_at = time.monotonic() + self.settings.stop_grace_s
                    elif time.monotonic() > stop_at:
                        log.error("the child did not stop in %g s; killing it", self.settings.stop_grace_s)
                        child.process.kill()
                        break
                elif self._has_lost_a_rank(child, ready):
                    child.process.kill()
                    break
                self._judge(child)
                if self._is_stalled(child):
                    self._end_stalled(child)
                    break
        child.end(patience_s=5)

    def _has_lost_a_rank(self, child: Child, readable: set[int]) -> bool:
        """Whether another rank has ended, and not only because the child did."""
        lost = child.followers.lost(readable)
        if lost is None or child.process.poll() is not None:
            return False
        log.error("%s; ending the other ranks", lost.cause)
        child.lost, child.problem = lost, lost.problem
        if lost.fall_back is not None:
            self._fall_back(lost.fall_back)
        return True

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
                child.observed = ObservedAttempt.begin(
                    message.running, message.waited_s, self.heartbeat.speed
                )
            case Progressed():
                if child.observed is not None:
                    child.observed.goes_on(message.progress)
                if child.running is not None:
                    child.running = child.running.model_copy(update={"progress": message.progress})
            case ClipDone():
                CLIP_SECONDS.observe(message.seconds)
                self.heartbeat.speed = message.speed or self.heartbeat.speed
            case Ended():
                child.running = None
                if child.observed is not None:
                    child.observed.ends(message.outcome == "succeeded")
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
        stopped = child.stopped_ranks()
        message = f"no progress for {seconds:g} s"
        if stopped:
            message += f"; {' and '.join(stopped)} had been stopped by a signal"
        log.error("%s; killing the child", message)
        child.end()
        if not child.ready:
            child.problem = f"it was not loaded within {seconds:g} s (COINTERACT_STALL_TIMEOUT_S)"
        if child.running is not None:
            self._record(child.running, "stalled", message, burns_attempt=True)
            child.running = None

    def _bury(self, child: Child) -> None:
        """Record the end of what the dead child was doing."""
        while messages := child.receive():
            for message in messages:
                self._take_note(child, message)
        if child.running is not None:
            if self._stopping.is_set():
                self._record(child.running, "shutdown", "the worker was stopped", burns_attempt=False)
            else:
                self._record(
                    child.running,
                    "child_died" if child.lost is None else child.lost.reason,
                    f"the worker process {child.end_cause}",
                    burns_attempt=True,
                    memory_mode=None if child.lost is None else child.lost.fall_back,
                )
        if not self._stopping.is_set():
            CHILD_DEATHS.inc()
            log.warning("the child %s; starting another", child.end_cause)
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
        cause = child.end_cause
        if child.lost is None:
            cause += f". Its last words:\n{said}" if said else ", silently"
        if not child.ready:
            return f"The worker cannot load its model: the process that loads it {cause}"
        return f"The worker's process keeps dying, {self._deaths} times in a row by now: it {cause}"

    def _record(
        self,
        running: RunningJob,
        reason: InterruptReason,
        message: str,
        *,
        burns_attempt: bool,
        memory_mode: MemoryMode | None = None,
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
                memory_mode=memory_mode,
            )
        except OSError as error:
            # The reaper finds an attempt that nobody works on, and records this when it can.
            log.error("cannot write to storage: %s", error, extra={"job_id": running.job_id})
        ATTEMPTS.labels("interrupted", stage, reason).inc()


def run(
    settings: Settings,
    redis_url: str,
    folder: Path,
    devices: tuple[str, ...],
    name: str | None = None,
    checkpoint: str | None = None,
) -> None:
    """Run a worker in this process until SIGTERM or SIGINT. Main thread only."""
    supervisor = Supervisor(settings, redis_url, folder, devices, name, checkpoint)

    def stop(signum: int, frame: FrameType | None) -> None:
        supervisor.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if settings.worker_metrics_port is not None:
        nvidia_smi = shutil.which("nvidia-smi")
        if nvidia_smi is not None and devices != (CPU_NAME,):
            show_gpus(nvidia_smi)
        serve_metrics(settings.worker_metrics_port, OF_WORKER)
    supervisor.run()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m workers.supervisor", description="A worker on one device or several."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument(
        "--devices", default=CPU_NAME, type=parse_devices, help="cpu, cuda:0, or several: 0,1"
    )
    parser.add_argument("--name", help="how the worker is called in logs")
    options = parser.parse_args(arguments)
    settings = Settings()
    if settings.redis_url is None:
        parser.error("set COINTERACT_REDIS_URL")
    configure_logging(settings)
    try:
        run(settings, settings.redis_url, options.checkpoint, options.devices, options.name)
    except StoreRefusedError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
