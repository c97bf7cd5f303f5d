"""What `cointeract up` shows: first what it waits for, then where everything is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from contract.settings import Settings
from deploy.parts import base_url
from deploy.stack import WorkerPlan


def ready_panel(settings: Settings, data_dir: Path, plans: Sequence[WorkerPlan]) -> Panel:
    """Addresses, workers and folders, once everything is up."""
    url = base_url(settings)
    table = Table.grid(padding=(0, 2))
    rows: Mapping[str, str] = {
        "Web page": f"{url}/",
        "API": f"{url}/docs",
        "Workers": ", ".join(f"{plan.checkpoint} on {plan.devices}" for plan in plans),
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
                self._console.print(f"… {part}: {reason}", highlight=False, markup=False)
        self._refresh()

    def say(self, words: str) -> None:
        self._console.print(words, style="yellow", highlight=False, markup=False)

    def ready(self, part: str, note: str = "") -> None:
        if part in self._ready:
            return
        self._waiting.pop(part, None)
        took = time.monotonic() - self._began
        self._ready[part] = f"{note or 'ready'} ({took:.1f} s)"
        if not self._console.is_terminal:
            self._console.print(f"✓ {part}: {self._ready[part]}", highlight=False, markup=False)
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
