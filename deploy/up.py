"""`cointeract up`: puts the one-machine stack together, shows what it waits for, and watches over it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from contract.card import CARD_FILE, CheckpointCard
from contract.settings import Settings, as_environment
from deploy.display import StartDisplay, ready_panel
from deploy.parts import other_parts, redis_part
from deploy.samples import BUNDLED_CHECKPOINT
from deploy.stack import PartSupervisor, StackError, devices, only_stack_in, plan_workers, require_free_port
from deploy.troubles import Troubles
from jobs.cards import publish_card
from jobs.queue import JobQueue
from jobs.storage import StoreRefusedError, open_store

STACK_POLL_S = 0.2
HOPELESS_AFTER_DEATHS = 5
"""If a part dies so often before everything is up, waiting longer is of no use."""


def checkpoint_card(folder: Path) -> CheckpointCard:
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
    """`DIR` or `NAME=DIR`, in order → folders by name. Without a name, the card's own is used."""
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if "/" in name or Path(argument).is_dir():  # the "=" belongs to the folder's own name
            separator = ""
        path = Path(folder if separator else argument).expanduser().resolve()
        card = checkpoint_card(path)
        name = name if separator else card.name
        if name in folders:
            raise StackError(f"Two checkpoints are named {name!r}. Name them apart: --checkpoint NAME=DIR.")
        folders[name] = path
    return folders


def run_up(
    settings: Settings, checkpoint_arguments: Sequence[str], gpus_per_job: int, console: Console
) -> None:
    """Run the stack until SIGINT or SIGTERM. Raises StackError if it cannot get up."""
    data_dir = settings.data_dir.resolve()
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    supervisor: PartSupervisor | None = None
    troubles: Troubles | None = None
    try:
        with only_stack_in(data_dir):
            require_free_port(settings.host, settings.port)
            display = StartDisplay(console)
            with display:
                checkpoints = _checkpoints(settings, checkpoint_arguments, display)
                redis, redis_url = redis_part(settings, data_dir)
                environment = {
                    **os.environ,
                    **as_environment(
                        {
                            "data_dir": data_dir,
                            "redis_url": redis_url,
                            "host": settings.host,
                            "port": settings.port,
                        }
                    ),
                    "PYTHONUNBUFFERED": "1",
                }
                supervisor = PartSupervisor(data_dir / "logs", environment)
                queue = JobQueue(settings, redis_url)
                troubles = Troubles(queue)
                plans = plan_workers(devices(), checkpoints, gpus_per_job)
                if redis is not None:
                    supervisor.start(redis)
                _wait_until_ready(supervisor, troubles, display, stop)
                troubles.start()
                for part in other_parts(settings, queue, plans):
                    supervisor.start(part)
                _wait_until_ready(supervisor, troubles, display, stop)
            if not stop.is_set():
                console.print(ready_panel(settings, data_dir, plans))
            _watch(supervisor, troubles, stop, console)
    finally:
        if troubles is not None:
            troubles.end()
        if supervisor is not None:
            with console.status("Stopping; a running job is handed back to the queue …"):
                supervisor.stop()
            console.print("Stopped. Jobs and results are kept; `cointeract up` goes on with them.")
        for number, handler in previous.items():
            signal.signal(number, handler)


def _checkpoints(settings: Settings, arguments: Sequence[str], display: StartDisplay) -> dict[str, Path]:
    """The checkpoints to serve, by name. Their cards are published for the API to know them.

    Raises StackError if the store cannot be used.
    """
    folders = named_checkpoints(arguments or [str(BUNDLED_CHECKPOINT)])
    try:
        store = open_store(settings)
    except StoreRefusedError as error:
        raise StackError(str(error)) from error
    for name, folder in folders.items():
        publish_card(store, checkpoint_card(folder).model_copy(update={"name": name}))
        display.ready("checkpoint", name)
    return folders


def _wait_until_ready(
    supervisor: PartSupervisor, troubles: Troubles, display: StartDisplay, stop: threading.Event
) -> None:
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
            display.say(str(restart))
        troubles.note(supervisor.pids(), supervisor.dying())
        waiting = supervisor.waiting()
        known = troubles.known()
        display.update(supervisor.names(), {part: known.get(part, why) for part, why in waiting.items()})
        if not waiting:
            return
        stop.wait(STACK_POLL_S)


def _watch(supervisor: PartSupervisor, troubles: Troubles, stop: threading.Event, console: Console) -> None:
    """Restart what dies, and say so and what else does not work, until asked to stop."""

    def say(words: str, style: str = "yellow") -> None:
        console.print(words, style=style, highlight=False, markup=False)

    said: dict[str, str] = {}
    while not stop.wait(STACK_POLL_S):
        for restart in supervisor.poll():
            when = f"in {restart.delay_s:.0f} s" if restart.delay_s >= 1 else "now"
            say(f"{restart}\nRestarting {restart.part} {when}. Its log: {supervisor.log_path(restart.part)}")
            if restart.mended is not None:
                say(restart.mended)
        dying = supervisor.dying()
        troubles.note(supervisor.pids(), dying)
        for part, words in troubles.known().items():
            if part not in dying and said.get(part) != words:
                said[part] = words
                say(f"{part}: {words}")
        for part in said.keys() & troubles.ready():
            del said[part]
            say(f"{part} works again.", "green")
