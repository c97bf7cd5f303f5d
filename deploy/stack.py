"""Everything on one machine: starts Redis, API, reaper and workers, restarts what dies, stops them in order.

The parts are the same processes that a larger deployment runs on several machines. Only their parent differs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from contract.devices import CPU_NAME, SEPARATOR
from contract.processes import die_with_parent, last_words
from deploy.watchdog import HealthCheck, Watchdog
from jobs.artifacts import make_private_folder

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 5.0
"""A part that ran this long had a good start. Its next death does not count as one of a series."""

LONG_WAIT_S = 30.0
"""After waiting longer than this, users are told where the reason may be written."""

KILLED = "killed by"
MAX_LOG_BYTES = 50 * 2**20


class StackError(Exception):
    """The stack cannot start or go on. The message says what to do about it."""


@dataclass(frozen=True)
class Part:
    """One supervised process. `waiting_for` returns what it still waits for, or None when it can be used."""

    name: str
    argv: tuple[str, ...]
    waiting_for: Callable[[], str | None]
    stop_phase: int
    """Parts of phase 0 are stopped first, together, then those of phase 1, …"""
    stop_after_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    health: HealthCheck | None = None
    """A part that fails it for too long is killed and started again."""
    mend: Callable[[int, str], str | None] | None = None
    """Called with a dead process's exit status and last words. It may remove the cause, and then says how."""


@dataclass(frozen=True)
class Restart:
    """A part died and was, or will be, started again."""

    part: str
    exit_status: str
    delay_s: float
    in_a_row: int
    mended: str | None = None
    """What was done about the cause."""
    words: str = ""
    """The end of what it wrote."""

    def __str__(self) -> str:
        """How the part died, with its last words if it ended by itself or has died before."""
        died = f"{self.part} died ({self.exit_status}"
        if self.in_a_row > 1:
            died = f"{self.part} keeps dying ({self.exit_status}; {self.in_a_row} times in a row"
        tell = self.words and (self.in_a_row > 1 or not self.exit_status.startswith(KILLED))
        return f"{died})" + (f". Its last words:\n{self.words}" if tell else "")


@dataclass
class _Child:
    part: Part
    first_started_at: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    last_death: Restart | None = None
    log_start: int = 0
    """Where the words of this process begin in the part's log."""
    watchdog: Watchdog | None = None
    killed_because: str = ""


@dataclass
class PartSupervisor:
    """Keeps parts alive.

    Not thread-safe: start, poll and stop belong to one thread, the one that lives longest, because the kernel
    ends the children when the thread that started them ends.
    """

    log_dir: Path
    environment: Mapping[str, str]
    _children: list[_Child] = field(default_factory=list)

    def start(self, part: Part) -> None:
        child = _Child(part)
        self._children.append(child)
        self._spawn(child)

    def poll(self) -> list[Restart]:
        """Restart what died since the last call. Call this a few times a second."""
        restarts: list[Restart] = []
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.start_at:
                    self._spawn(child)
                continue
            code = child.process.poll()
            if code is None:
                self._end_if_sick(child)
                continue
            self._stop_watching(child)
            mended = child.part.mend(code, self._words(child)) if child.part.mend is not None else None
            child.deaths = 1 if now - child.started_at > HEALTHY_AFTER_S else child.deaths + 1
            delay = 0.0 if child.deaths == 1 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**child.deaths)
            why = child.killed_because or describe_exit(code)
            words = last_words(self._words(child))
            child.last_death = Restart(child.part.name, why, delay, child.deaths, mended, words)
            restarts.append(child.last_death)
            child.process = None
            child.start_at = now + delay
            if not delay:
                self._spawn(child)
        return restarts

    def _end_if_sick(self, child: _Child) -> None:
        """Kill a process that lives but does not work. The next `poll` starts another one."""
        seconds = child.watchdog.failing_for() if child.watchdog is not None else None
        if seconds is not None and child.process is not None and not child.killed_because:
            child.killed_because = f"answered no health check for {seconds:.0f} s"
            child.process.kill()

    @staticmethod
    def _stop_watching(child: _Child) -> None:
        if child.watchdog is not None:
            child.watchdog.end()
            child.watchdog = None

    def dying(self) -> dict[str, str]:
        """A sentence for each part that keeps dying soon after its start."""
        return {
            child.part.name: f"{child.last_death} (its log: {self.log_path(child.part.name)})"
            for child in self._children
            if child.last_death is not None
            and child.deaths > 1
            and (child.process is None or time.monotonic() - child.started_at < HEALTHY_AFTER_S)
        }

    def pids(self) -> dict[str, int | None]:
        """The process id of each part, None while it waits for its restart."""
        return {name: self.pid(name) for name in self.names()}

    def pid(self, name: str) -> int | None:
        """The part's process id, None while it waits for its restart. Raises KeyError for an unknown part."""
        for child in self._children:
            if child.part.name == name:
                return child.process.pid if child.process and child.process.poll() is None else None
        raise KeyError(name)

    def waiting(self) -> dict[str, str]:
        """What each part that is not ready yet waits for."""
        found: dict[str, str] = {}
        for child in self._children:
            reason = "restart" if child.process is None else child.part.waiting_for()
            if reason is None:
                if child.watchdog is not None:
                    child.watchdog.has_started()
                continue
            if time.monotonic() - child.first_started_at > LONG_WAIT_S:
                reason += f" (its log: {self.log_path(child.part.name)})"
            found[child.part.name] = reason
        return found

    def names(self) -> list[str]:
        return [child.part.name for child in self._children]

    def stop(self) -> None:
        """End all parts, phase by phase, because a worker needs Redis to hand its job back."""
        for child in self._children:
            self._stop_watching(child)
        for phase in sorted({child.part.stop_phase for child in self._children}):
            running = [
                (child.part, child.process)
                for child in self._children
                if child.part.stop_phase == phase
                and child.process is not None
                and child.process.poll() is None
            ]
            for _, process in running:
                process.terminate()
            asked_at = time.monotonic()
            for part, process in running:
                try:
                    process.wait(max(0.0, asked_at + part.stop_after_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._children.clear()

    def kill_all(self) -> None:
        """End all parts at once, as a power cut does; the next `poll` starts them again."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.kill()
        for process in running:
            process.wait()

    def log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def log_tail(self, name: str, lines: int = 12) -> str:
        """The last lines that a part wrote."""
        return "\n".join(self._log_end(name).splitlines()[-lines:])

    def _words(self, child: _Child) -> str:
        """The end of what the part's present process wrote."""
        return self._log_end(child.part.name, child.log_start)

    def _log_end(self, name: str, start: int = 0) -> str:
        try:
            with self.log_path(name).open("rb") as file:
                file.seek(max(start, file.seek(0, os.SEEK_END) - 16_384))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _spawn(self, child: _Child) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.log_path(child.part.name)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        child.killed_because = ""
        with path.open("ab") as log:
            child.log_start = log.tell()
            child.process = subprocess.Popen(
                child.part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                # In a session of its own, Ctrl-C does not reach it: we stop the parts in order.
                start_new_session=True,
                # On Linux it ends with us even if we are killed.
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        child.started_at = time.monotonic()
        if child.part.health is not None:
            child.watchdog = Watchdog(child.part.health, child.process.pid)
            child.watchdog.start()


def describe_exit(code: int) -> str:
    """`-9` → "killed by SIGKILL", `1` → "exit status 1"."""
    if code < 0:
        try:
            return f"{KILLED} {signal.Signals(-code).name}"
        except ValueError:
            return f"{KILLED} signal {-code}"
    return f"exit status {code}"


@contextmanager
def only_stack_in(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this stack. Raises StackError if another one runs on it."""
    try:
        make_private_folder(data_dir)
        file = (data_dir / "stack.lock").open("a+")
    except OSError as error:
        raise StackError(
            f"The data folder {data_dir} cannot be written ({error.strerror}). Choose another with --data, "
            "or give this user the right to write there."
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise StackError(
                f"Another stack (process {holder or 'unknown'}) already runs on {data_dir}. "
                "Stop it, or choose another folder with --data."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def require_free_port(host: str, port: int) -> None:
    """Raises StackError if nobody could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"Cannot listen on {host}:{port} ({error.strerror}). Choose another port with --port."
            ) from error


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def devices() -> list[str]:
    """The devices for workers: all visible GPUs, or the CPU. Asks the driver's tool: torch takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    elif tool := shutil.which("nvidia-smi"):
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
        count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    else:
        count = 0
    return [f"cuda:{index}" for index in range(count)] or [CPU_NAME]


@dataclass(frozen=True)
class WorkerPlan:
    name: str
    devices: str
    """As `cointeract worker --devices` takes them."""
    checkpoint: str
    folder: Path


def plan_workers(
    found: Sequence[str], checkpoints: Mapping[str, Path], devices_per_worker: int = 1
) -> list[WorkerPlan]:
    """One worker per group of devices, but at least one per checkpoint. Both are taken in turn.

    Devices that are too few for one more group work together all the same. A CPU can be any number of them.

    Raises:
        StackError: there are fewer GPUs than one worker is to have.
    """
    if list(found) == [CPU_NAME]:
        found = [CPU_NAME] * devices_per_worker
    elif len(found) < devices_per_worker:
        raise StackError(
            f"--gpus-per-job {devices_per_worker} is too many: this machine has {len(found)} GPUs."
        )
    groups = [found[at : at + devices_per_worker] for at in range(0, len(found), devices_per_worker)]
    names = list(checkpoints)
    plans: list[WorkerPlan] = []
    for index in range(max(len(groups), len(names))):
        checkpoint = names[index % len(names)]
        group = SEPARATOR.join(groups[index % len(groups)])
        plans.append(WorkerPlan(f"worker-{index + 1}", group, checkpoint, checkpoints[checkpoint]))
    return plans
