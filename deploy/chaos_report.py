"""The report of `cointeract chaos` on a terminal."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from deploy.chaos import Report


def show(report: Report, console: Console) -> None:
    """Every figure that was measured, in words, and the verdict."""
    table = Table.grid(padding=(0, 2))
    for name, value in dataclasses.asdict(report).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or None
        if value is not None:
            table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    if report.ok():
        console.print("Every promise held.", style="green")
    else:
        console.print("A promise was broken; see docs/reliability.md.", style="red")
