"""`cointeract up`: assembles the one-machine stack, shows what it waits for, and watches over it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import httpx
from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from contract.card import CARD_FILE, CheckpointCard
from contract.processes import own_process
from contract.settings import Settings
from deploy.stack import (
    Part,
    StackError,
    Supervisor,
    WorkerPlan,
    devices,
    only_stack_in,
    plan_workers,
    require_free_port,
)
from deploy.watchdog import HealthCheck
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from jobs.identity import REAPER, pid_of, process_name
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer

BUNDLED_CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The small trained checkpoint that comes with the code; `python -m tools.ship checkpoint` puts it there."""

POLL_S = 0.2
LOADING_IS_DEAR = 4.0
"""So many times the patience of others is had with a worker: another would have to load the model first."""
HOPELESS_AFTER_DEATHS = 5
"""A part that dies this often before everything is up will not get better by itself."""


def read_card(folder: Path) -> CheckpointCard:
    """The card of a checkpoint folder. Raises StackError if there is none."""
    try:
        return CheckpointCard.model_validate_json((folder / CARD_FILE).read_bytes())
    except FileNotFoundError:
        raise StackError(
            f"{folder} is no checkpoint folder: it has no {CARD_FILE}. `cointeract convert` makes one from "
            "the official weights, `cointeract tiny-checkpoint` a small one for trying things out."
        ) from None
    except ValueError as error:
        raise StackError(f"{folder / CARD_FILE} cannot be read: {error}") from error


def named_checkpoints(arguments: Sequence[str]) -> dict[str, Path]:
    """`DIR` or `NAME=DIR`, in order → folders by name; without a name the card's own counts."""
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if "/" in name or Path(argument).is_dir():  # the "=" belongs to the folder's own name
            separator = ""
        path = Path(folder if separator else argument).expanduser().resolve()
        card = read_card(path)
        name = name if separator else card.name
        if name in folders:
            raise StackError(f"Two checkpoints are named {name!r}. Name them apart: --checkpoint NAME=DIR.")
        folders[name] = path
    return folders


def own_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs `cointeract ARGUMENTS` with this very Python."""
    return own_process("cli.app", *arguments)


def run_up(settings: Settings, checkpoint_arguments: Sequence[str], console: Console) -> None:
    """Run the stack until SIGINT or SIGTERM. Raises StackError if it cannot get up."""
    data_dir = settings.data_dir.resolve()
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    supervisor: Supervisor | None = None
    try:
        with only_stack_in(data_dir):
            require_free_port(settings.host, settings.port)
            display = StartDisplay(console)
            with display:
                checkpoints = _checkpoints(data_dir, checkpoint_arguments, display)
                redis_part, redis_url = _redis_part(settings, data_dir)
                environment = {
                    **os.environ,
                    "COINTERACT_DATA_DIR": str(data_dir),
                    "COINTERACT_REDIS_URL": redis_url,
                    "COINTERACT_HOST": settings.host,
                    "COINTERACT_PORT": str(settings.port),
                    "PYTHONUNBUFFERED": "1",
                }
                supervisor = Supervisor(data_dir / "logs", environment)
                queue = JobQueue(settings, redis_url)
                plans = plan_workers(devices(), checkpoints)
                if redis_part is not None:
                    supervisor.start(redis_part)
                _wait_until_ready(supervisor, display, stop)
                for part in _other_parts(settings, queue, plans):
                    supervisor.start(part)
                _wait_until_ready(supervisor, display, stop)
            if not stop.is_set():
                console.print(_ready_panel(settings, data_dir, plans))
            _watch(supervisor, stop, console)
    finally:
        if supervisor is not None:
            with console.status("Stopping; a running job is handed back to the queue …"):
                supervisor.stop()
            console.print("Stopped. Jobs and results are kept; `cointeract up` goes on with them.")
        for number, handler in previous.items():
            signal.signal(number, handler)


def _checkpoints(data_dir: Path, arguments: Sequence[str], display: StartDisplay) -> dict[str, Path]:
    """The checkpoints to serve, by name, with their cards published: the API knows them from its start."""
    folders = named_checkpoints(arguments or [str(BUNDLED_CHECKPOINT)])
    store = FolderStore(data_dir / "storage")
    for name, folder in folders.items():
        publish_card(store, read_card(folder).model_copy(update={"name": name}))
        display.ready("checkpoint", name)
    return folders


def _redis_part(settings: Settings, data_dir: Path) -> tuple[Part | None, str]:
    if settings.redis_url is not None:
        try:
            JobQueue(settings, settings.redis_url).ping()
        except RedisError as error:
            raise StackError(
                f"Redis at {settings.redis_url} does not answer ({error}). Unset COINTERACT_REDIS_URL and "
                "REDIS_URL to use the embedded one."
            ) from error
        return None, settings.redis_url
    server = RedisServer(data_dir / "redis")
    try:
        command = tuple(server.command)
    except RuntimeError as error:
        raise StackError(f"The embedded Redis cannot start: {error}") from error
    queue = JobQueue(settings, server.url)

    def waiting_for() -> str | None:
        return _unless_redis_fails(queue.ping, "loading its file")

    health = HealthCheck(lambda pid: waiting_for() is None, settings.watchdog_s)
    redis = Part("redis", command, waiting_for, stop_phase=2, health=health, mend=server.mend)
    return redis, server.url


def _other_parts(settings: Settings, queue: JobQueue, plans: Sequence[WorkerPlan]) -> list[Part]:
    health_url = f"{base_url(settings)}/healthz"

    def api_waits_for() -> str | None:
        try:
            answer = httpx.get(health_url, timeout=2.0, trust_env=False)  # our own: never through a proxy
            return None if answer.is_success else "an answer"
        except httpx.HTTPError:
            return "importing"

    def watched(is_healthy: Callable[[int], bool], patience: float = 1.0) -> HealthCheck:
        return HealthCheck(_unless_redis_is_away(is_healthy), patience * settings.watchdog_s)

    def reaper_lives(pid: int) -> bool:
        return queue.is_alive(process_name(REAPER, pid))

    def worker_lives(pid: int) -> bool:
        return any(pid_of(worker.name) == pid for worker in queue.workers())

    api = watched(lambda pid: api_waits_for() is None)
    parts = [
        Part("api", own_command("serve"), api_waits_for, stop_phase=1, health=api),
        Part("reaper", own_command("reaper"), lambda: None, stop_phase=1, health=watched(reaper_lives)),
    ]
    for index, plan in enumerate(plans):
        rank = sum(other.checkpoint == plan.checkpoint for other in plans[: index + 1])
        arguments = ("worker", "--checkpoint", f"{plan.checkpoint}={plan.folder}", "--device", plan.device)
        parts.append(
            Part(
                plan.name,
                own_command(*arguments),
                _worker_waits_for(queue, plan, rank),
                stop_after_s=settings.stop_grace_s + 5,
                stop_phase=0,
                health=watched(worker_lives, LOADING_IS_DEAR),
            )
        )
    return parts


def _worker_waits_for(queue: JobQueue, plan: WorkerPlan, rank: int) -> Callable[[], str | None]:
    """The rank-th worker of a checkpoint is ready when that many of them are alive."""

    def waiting_for() -> str | None:
        def enough() -> None:
            alive = [worker for worker in queue.workers() if worker.checkpoint == plan.checkpoint]
            if sum(worker.ready for worker in alive) < rank:
                raise LookupError

        return _unless_redis_fails(enough, f"loading {plan.checkpoint} on {plan.device}")

    return waiting_for


def _unless_redis_is_away(is_healthy: Callable[[int], bool]) -> Callable[[int], bool]:
    """A part that cannot tell Redis how it is may well be healthy; Redis has a watchdog of its own."""

    def checked(pid: int) -> bool:
        try:
            return is_healthy(pid)
        except (RedisError, OSError):
            return True

    return checked


def _unless_redis_fails(check: Callable[[], None], reason: str) -> str | None:
    try:
        check()
    except (RedisError, OSError, LookupError):
        return reason
    return None


def _wait_until_ready(supervisor: Supervisor, display: StartDisplay, stop: threading.Event) -> None:
    while not stop.is_set():
        for restart in supervisor.poll():
            if restart.mended is not None:
                display.say(restart.mended)
            if restart.in_a_row >= HOPELESS_AFTER_DEATHS:
                log, words = supervisor.log_path(restart.part), supervisor.log_tail(restart.part)
                raise StackError(
                    f"{restart.part} does not start ({restart.exit_status}, {restart.in_a_row} times). "
                    f"Its last words ({log}):\n{words}"
                )
        waiting = supervisor.waiting()
        display.update(supervisor.names(), waiting)
        if not waiting:
            return
        stop.wait(POLL_S)


def _watch(supervisor: Supervisor, stop: threading.Event, console: Console) -> None:
    """Restart whatever dies, and say so, until asked to stop."""
    while not stop.wait(POLL_S):
        for restart in supervisor.poll():
            when = f"in {restart.delay_s:.0f} s" if restart.delay_s >= 1 else "now"
            console.print(
                f"[yellow]{restart.part} died[/] ({restart.exit_status}); restarting {when}. "
                f"Log: {supervisor.log_path(restart.part)}",
                highlight=False,
            )
            if restart.mended is not None:
                console.print(restart.mended, style="yellow", highlight=False)


def base_url(settings: Settings) -> str:
    """Where a browser on this machine finds the API."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _ready_panel(settings: Settings, data_dir: Path, plans: Sequence[WorkerPlan]) -> Panel:
    url = base_url(settings)
    table = Table.grid(padding=(0, 2))
    rows: Mapping[str, str] = {
        "Web page": f"{url}/",
        "API": f"{url}/docs",
        "Workers": ", ".join(f"{plan.checkpoint} on {plan.device}" for plan in plans),
        "Data and logs": str(data_dir),
        "Try it": f"cointeract demo --url {url}",
        "Stop": "Ctrl-C",
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return Panel(table, title="CoInteract is ready", border_style="green", expand=False)


class StartDisplay:
    """One line per part: a spinner and what it waits for, then a tick. On a pipe: plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._waiting: dict[str, tuple[str, Spinner]] = {}
        self._ready: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=10, transient=False)

    def __enter__(self) -> StartDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._waiting.clear()
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    def wait_for(self, part: str, reason: str) -> None:
        known = self._waiting.get(part)
        if known is None or known[0] != reason:
            self._ready.pop(part, None)
            self._waiting[part] = (reason, Spinner("dots", Text(f"{part:<12} {reason} …")))
            if not self._console.is_terminal:
                self._console.print(f"… {part}: {reason}", highlight=False)
        self._refresh()

    def say(self, words: str) -> None:
        self._console.print(words, style="yellow", highlight=False)

    def ready(self, part: str, note: str = "") -> None:
        if part in self._ready:
            return
        self._waiting.pop(part, None)
        took = time.monotonic() - self._began
        self._ready[part] = f"{note or 'ready'} ({took:.1f} s)"
        if not self._console.is_terminal:
            self._console.print(f"✓ {part}: {self._ready[part]}", highlight=False)
        self._refresh()

    def update(self, parts: Sequence[str], waiting: Mapping[str, str]) -> None:
        for part in parts:
            if part in waiting:
                self.wait_for(part, waiting[part])
            else:
                self.ready(part)

    def _refresh(self) -> None:
        if self._console.is_terminal:
            self._live.update(self._render())

    def _render(self) -> Group:
        done = [Text(f"✓ {part:<12} {note}", style="green") for part, note in self._ready.items()]
        return Group(*done, *(spinner for _, spinner in self._waiting.values()))
