"""`cointeract batch`: makes a video of each row of a table, through a server.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import FAILED, ApiKeyOption, ServerOption, complaints, console, explained_errors

if TYPE_CHECKING:
    from cointeract_client import Result

batches = typer.Typer()


@batches.command(rich_help_panel="Make videos")
def batch(
    table: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="CSV file with a header; one row for each video."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for the videos.")],
    at_once: Annotated[int, typer.Option(min=1, help="Jobs that wait or run at the same time.")] = 8,
    retry: Annotated[
        bool, typer.Option("--retry", help="Make rows anew that ended without a video in an earlier run.")
    ] = False,
    url: ServerOption = "http://127.0.0.1:8000",
    api_key: ApiKeyOption = None,
) -> None:
    """Make a video of each row of a table. A stopped run goes on where it stopped when it is run again.

    Columns: person, product, audio, pose (paths from the table's folder, or https: URLs), prompt, prompt2, …
    (one per clip), name, metadata.KEY, and any other field of a submit (seed, size, preset, speech_text, …).
    OUT/results.csv has the state of each row. Exit status: 0 if all rows have a video, else 1.
    """
    from cointeract_client import read_rows, run_batch

    from cli.service import service

    with explained_errors():
        try:
            rows = read_rows(table)
        except ValueError as error:
            complaints.print(str(error), style="red", highlight=False, markup=False)
            raise typer.Exit(FAILED) from error
        with service(url, api_key) as client:
            results = run_batch(client, rows, out, at_once=at_once, retry=retry, on_result=_say)
        made = sum(result.state == "succeeded" for result in results)
        console.print(f"{made} of {len(results)} videos are in {out}", highlight=False, markup=False)
        if made < len(results):
            raise typer.Exit(FAILED)


def _say(result: Result) -> None:
    what = result.file or result.error or result.job
    console.print(f"{result.name}: {result.state} {what}".rstrip(), highlight=False, markup=False)
