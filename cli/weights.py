"""`cointeract fetch` and `cointeract convert` on a terminal: progress, reports and errors.

Imports inside the functions: see `cli.app`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from model.checkpoints.convert import ConversionReport, ConvertRequest
    from model.checkpoints.fetch import FetchRequest


class WeightsError(Exception):
    """Official files could not be fetched or converted. The message says why and what to do."""


@contextmanager
def _explained() -> Iterator[None]:
    from model.checkpoints.errors import CheckpointError
    from model.checkpoints.fetch import DownloadError

    try:
        yield
    except (CheckpointError, DownloadError) as error:
        raise WeightsError(str(error)) from error
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise WeightsError(f"{name}{error.strerror or error}") from error


def parse_revisions(texts: list[str]) -> dict[str, str]:
    """["REPO=COMMIT", …] → {repo: commit}. Raises WeightsError for anything else."""
    revisions = {}
    for text in texts:
        repo, equals, revision = text.partition("=")
        if not (repo and equals and revision):
            raise WeightsError(f"{text!r} is not REPOSITORY=REVISION")
        revisions[repo] = revision
    return revisions


def run_fetch(request: FetchRequest, console: Console) -> None:
    """Fetch the files, and print the command that comes next."""
    from model.checkpoints.fetch import fetch

    with _explained():
        fetched = fetch(
            request, lambda name, number, count: console.print(f"[dim]{number}/{count}[/] {name}")
        )
    console.print(f"{fetched.downloaded_bytes / 1e9:.1f} GB downloaded; every file is in place and checked.")
    out = request.to / ("cointeract-pose" if request.pose else "cointeract-speech")
    console.print("Now make a checkpoint of them:", highlight=False)
    command = (
        f"cointeract convert --base {fetched.base} --cointeract {fetched.cointeract} "
        f"--audio-encoder {fetched.audio_encoder} --out {out}"
    )
    console.print(command, highlight=False, markup=False, soft_wrap=True)


def run_convert(request: ConvertRequest, console: Console) -> None:
    """Convert with a progress bar, then show the report."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _explained(), Progress(*columns, console=console, transient=True) as progress:
        from model.checkpoints.convert import convert

        task = progress.add_task("Reading headers", total=None)

        def on_progress(component: str, written: int, total: int) -> None:
            progress.update(task, description=component, completed=written, total=total)

        report = convert(request, on_progress)
    _show(report, console)
    console.print(
        f"{request.out} is ready: cointeract up --checkpoint {request.out}", highlight=False, soft_wrap=True
    )


def _show(report: ConversionReport, console: Console) -> None:
    table = Table("transformer", "tensors", "parameters")
    for origin, count in report.transformer_tensors.items():
        table.add_row(origin, f"{count:,}", f"{report.transformer_parameters[origin]:,}")
    table.add_section()
    table.add_row("in all", *_totals(report.transformer_tensors, report.transformer_parameters))
    table.add_row(
        "[dim]HOI branch, dropped[/]",
        f"{len(report.dropped_hoi_tensors):,}",
        f"{report.dropped_hoi_parameters:,}",
    )
    console.print(table)
    ranks = ", ".join(map(str, report.lora_ranks))
    console.print(f"LoRA: {report.lora_pairs_merged} pairs of rank {ranks} merged in fp32.", highlight=False)
    for name, component in report.components.items():
        console.print(
            f"{name}: {component.tensors:,} tensors, {component.parameters / 1e9:.2f} B parameters, "
            f"{component.bytes / 1e9:.2f} GB",
            highlight=False,
        )
    if report.dropped_other_tensors:
        console.print(f"Not needed and dropped: {', '.join(report.dropped_other_tensors)}", highlight=False)
    peak = report.peak_memory_bytes / 1e9
    console.print(f"{report.seconds:.0f} s, peak memory {peak:.2f} GB", highlight=False)


def _totals(tensors: Mapping[str, int], parameters: Mapping[str, int]) -> tuple[str, str]:
    return f"{sum(tensors.values()):,}", f"{sum(parameters.values()):,}"
