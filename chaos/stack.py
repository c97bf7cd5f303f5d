"""The live stack that `cointeract chaos` attacks: the real parts and supervisor, with a fake model."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import httpx
from redis.exceptions import RedisError

from chaos.disk import Disk
from chaos.storage import RemoteStorage
from contract.settings import Settings, as_environment
from deploy.parts import own_command
from deploy.stack import Part, PartSupervisor, free_port
from jobs.artifacts import ArtifactStore
from jobs.cards import publish_card
from jobs.identity import pid_of
from jobs.journal import Journal
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer
from jobs.storage import open_store
from workers.engines.fake import FakeSettings, write_fake_checkpoint
from workers.scratch import attempt_of_folder

CHECKPOINT = "chaos"
CHAOS_START_TIMEOUT_S = 120.0
FROZEN_SUPERVISOR_S = 40.0
POWER_CUT = "power cut"


@dataclass(frozen=True)
class InjectedFault:
    """A fault that was injected into the stack."""

    kind: str
    at: float
    """Unix time, as in the journal."""
    worker_pid: int | None = None
    """Process id of the supervisor of the worker that was hit."""
    job_id: str | None = None
    """The job that the worker was rendering."""
    ends_attempts: bool = False
    """Whether an attempt of that worker may count against its job."""


@dataclass
class LiveStack:
    """A running stack and faults for it. For one thread, as `deploy.stack.PartSupervisor`."""

    settings: Settings
    url: str
    supervisor: PartSupervisor
    store: ArtifactStore
    queue: JobQueue
    workers: int
    ports: tuple[int, ...]
    """The ports of the API processes. `url` leads to the first."""
    disk: Disk | None = None
    """The disk under the data folder, if its power can be cut."""
    fail_storage: Callable[[float], None] | None = None
    """Makes the storage fail for so many seconds, if that can be had."""
    frozen: dict[int, float] = field(default_factory=dict)
    """Stopped processes, each with the time at which it goes on."""

    @property
    def journal(self) -> Journal:
        return Journal(self.store)

    @property
    def api_names(self) -> list[str]:
        return [f"api-{number}" for number in range(len(self.ports))]

    def poll(self) -> None:
        """Restart dead parts, and continue processes that have been stopped for long enough."""
        self.supervisor.poll()
        for pid, wake_at in list(self.frozen.items()):
            if time.monotonic() > wake_at:
                del self.frozen[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def worker_pids(self) -> list[int]:
        """Process ids of the supervisors of running workers."""
        pids = [self.supervisor.pid(f"worker-{number}") for number in range(self.workers)]
        return [pid for pid in pids if pid is not None and pid not in self.frozen]

    def kill(self, part: str) -> InjectedFault | None:
        """Kill an API, "reaper" or "redis". None if it is not running."""
        pid = self.supervisor.pid(part)
        if pid is None:
            return None
        os.kill(pid, signal.SIGKILL)
        return InjectedFault(f"kill {part.partition('-')[0]}", time.time())

    def cut_power(self) -> InjectedFault | None:
        """Cut the power and restore it. Everything stops, and data that was not yet on the disk is lost."""
        assert self.disk is not None
        fault = InjectedFault(POWER_CUT, time.time())
        self.disk.cut_power()
        self.supervisor.kill_all()
        for pid in self.frozen:  # a child that was stopped while it started does not die with its supervisor
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.frozen.clear()
        self.disk.unmount()
        self.disk.mount()
        return fault

    def kill_worker(self, pid: int) -> InjectedFault:
        fault = InjectedFault("kill worker", time.time(), pid, self._job_of(pid), ends_attempts=True)
        os.kill(pid, signal.SIGKILL)
        return fault

    def kill_child(self, pid: int) -> InjectedFault | None:
        """Kill the process that renders for the supervisor `pid`."""
        children = child_pids(pid)
        if not children:
            return None
        fault = InjectedFault("kill child", time.time(), pid, self._job_of(pid), ends_attempts=True)
        os.kill(children[0], signal.SIGKILL)
        return fault

    def freeze_worker(self, pid: int) -> InjectedFault:
        """Stop a supervisor and its child until well past their lease."""
        wake_at = time.monotonic() + 2 * self.settings.lease_ttl_s
        fault = InjectedFault("freeze worker", time.time(), pid, self._job_of(pid))
        for victim in (pid, *child_pids(pid)):
            os.kill(victim, signal.SIGSTOP)
            self.frozen[victim] = wake_at
        return fault

    def freeze_supervisor(self, pid: int) -> InjectedFault:
        """Stop a supervisor alone: its child lives on under a lease that nobody renews."""
        fault = InjectedFault("freeze supervisor", time.time(), pid, self._job_of(pid))
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = time.monotonic() + FROZEN_SUPERVISOR_S
        return fault

    def freeze_redis(self, seconds: float) -> InjectedFault | None:
        """Stop Redis, so that it answers nobody. Its clients bear that worse than a Redis that is gone."""
        pid = self.supervisor.pid("redis")
        if pid is None:
            return None
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = time.monotonic() + seconds
        return InjectedFault("Redis outage", time.time())

    def break_storage(self, seconds: float) -> InjectedFault | None:
        """Let requests to the storage fail in every way for so long."""
        if self.fail_storage is None:
            return None
        self.fail_storage(seconds)
        return InjectedFault("storage fails", time.time())

    def flush_redis(self) -> InjectedFault | None:
        try:
            self.queue.redis.flushall()
        except RedisError:
            return None
        return InjectedFault("FLUSHALL", time.time())

    def running_jobs(self) -> set[str]:
        """The jobs that live workers say they render. Raises RedisError."""
        return {worker.running.job_id for worker in self.queue.workers() if worker.running is not None}

    def is_rendering(self, job_id: str) -> bool:
        """Whether a worker may hold the job. Raises RedisError.

        A worker has a folder for its attempt and removes it after freeing the device. A killed worker leaves
        the folder behind, so a folder counts only if its worker lives.
        """
        folders = [path.name for scratch in self._scratches() for path in scratch.iterdir()]
        return (
            any((attempt_of_folder(name) or ("",))[0] == job_id for name in folders)
            and job_id in self.running_jobs()
        )

    def _scratches(self) -> list[Path]:
        """Where workers keep unfinished files: each on a disk of its own, if they share no folder."""
        if self.settings.storage_url is None:
            return [self.store.scratch()]
        disks = [self.disk_of(f"worker-{number}") for number in range(self.workers)]
        scratches = [
            self.settings.model_copy(update={"data_dir": disk}).remote_dir / "scratch" for disk in disks
        ]
        return [scratch for scratch in scratches if scratch.exists()]

    def disk_of(self, part: str) -> Path:
        """The data folder of a part."""
        data = self.settings.data_dir
        return data if self.settings.storage_url is None else data / part

    def _job_of(self, pid: int) -> str | None:
        with suppress(RedisError):
            for worker in self.queue.workers():
                if pid_of(worker.name) == pid and worker.running is not None:
                    return worker.running.job_id
        return None


def child_pids(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def resident_bytes(pid: int) -> int:
    """Memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory")


@contextmanager
def live_stack(
    folder: Path,
    workers: int,
    fake: FakeSettings,
    settings: Settings,
    *,
    apis: int = 1,
    disk: Disk | None = None,
    storage: RemoteStorage | None = None,
    more_environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[LiveStack]:
    """Start everything in `folder` and wait until it is ready. At the end, stop it.

    The data is on `disk` if there is one. With a remote `storage` each part has a disk of its own, and none
    is shared.
    """
    data = (folder if disk is None else disk.path) / "data"
    shutil.rmtree(data, ignore_errors=True)
    ports = tuple(free_port("127.0.0.1") for _ in range(apis))
    redis = RedisServer(data / "redis")
    stack_settings = settings.model_copy(
        update={
            "data_dir": data,
            "redis_url": redis.url,
            "host": "127.0.0.1",
            "port": ports[0],
            "storage_url": None if storage is None else storage.url,
        }
    )
    environment = {
        **os.environ,
        **as_environment(stack_settings.model_dump()),
        "OMP_NUM_THREADS": "1",
        **({} if storage is None else storage.environment),
        **more_environment,
    }
    supervisor = PartSupervisor(folder / "logs", environment)
    store = open_store(stack_settings)
    publish_card(store, write_fake_checkpoint(folder / "checkpoint", CHECKPOINT, fake))
    queue = JobQueue(stack_settings, redis.url)
    url = f"http://127.0.0.1:{ports[0]}"
    fail = None if storage is None else storage.fail
    stack = LiveStack(stack_settings, url, supervisor, store, queue, workers, ports, disk, fail)
    try:
        for part in _parts(stack, redis, folder / "checkpoint"):
            supervisor.start(part)
            _wait_until_ready(supervisor)
        yield stack
    finally:
        for pid in stack.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        supervisor.stop()


def _parts(stack: LiveStack, redis: RedisServer, checkpoint: Path) -> list[Part]:
    def redis_waits_for() -> str | None:
        try:
            stack.queue.ping()
        except RedisError:
            return "Redis"
        return None

    def api_waits_for(port: int) -> str | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1, trust_env=False)
            return None if answer.is_success else "an answer"
        except httpx.HTTPError:
            return "the API"

    def workers_wait_for() -> str | None:
        started = sum(name.startswith("worker") for name in stack.supervisor.names())
        try:
            ready = sum(worker.ready for worker in stack.queue.workers())
        except RedisError:
            return "Redis"
        return None if ready >= started else "a worker"

    def command(name: str, *words: str) -> tuple[str, ...]:
        return own_command(*words, "--data", str(stack.disk_of(name)))

    worker = ("worker", "--checkpoint", str(checkpoint), "--device", "cpu")
    return [
        Part("redis", tuple(redis.command), redis_waits_for, stop_phase=2, mend=redis.mend),
        *(
            Part(
                name,
                command(name, "serve", "--port", str(port)),
                partial(api_waits_for, port),
                stop_phase=1,
            )
            for name, port in zip(stack.api_names, stack.ports, strict=True)
        ),
        Part("reaper", command("reaper", "reaper"), lambda: None, stop_phase=1),
        *(
            Part(name, command(name, *worker), workers_wait_for, stop_phase=0)
            for name in (f"worker-{number}" for number in range(stack.workers))
        ),
    ]


def _wait_until_ready(supervisor: PartSupervisor) -> None:
    deadline = time.monotonic() + CHAOS_START_TIMEOUT_S
    while waiting := supervisor.waiting():
        supervisor.poll()
        if time.monotonic() > deadline:
            part = next(iter(waiting))
            raise TimeoutError(f"{part} waits for {waiting[part]}:\n{supervisor.log_tail(part)}")
        time.sleep(0.1)
