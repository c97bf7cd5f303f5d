"""The commands that measure the model on this machine: bench, profile.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.common import complaints, console, explained_errors

measuring = typer.Typer()

PANEL = "Measure the model"
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", "-c", metavar="DIR", help="Checkpoint folder. Default: the bundled small one."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]


class Traced(StrEnum):
    FORWARD = "forward"
    CLIP = "clip"


@measuring.command(rich_help_panel=PANEL)
def bench(
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Repeat it for several. Default: the checkpoint's."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each figure.")] = 3,
    clips: Annotated[int, typer.Option(min=0, help="Clips of the short job. 0 leaves it out.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the short job.")] = 4,
    official: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Clone of the official repository to compare with: small networks with the same weights, on "
            "the CPU, in turns. It needs the package einops.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a checkpoint's networks on this machine: seconds, TFLOP/s, launches, bytes, peak memory.

    Nothing else should run beside it. A forward is measured with experts (t = 500) and without (t = 950).
    """
    with explained_errors():
        with complaints.status("Loading"):
            from cli.bench import BenchOptions, as_text, run_bench, show
        options = BenchOptions(checkpoint, device, tuple(size or ()), rounds, clips, steps, official)
        with complaints.status("Loading the checkpoint …") as status:
            report = run_bench(options, lambda what: status.update(f"Measuring {what} …"))
    typer.echo(as_text(report) if as_json else show(report))


@measuring.command(rich_help_panel=PANEL)
def profile(
    output: Annotated[Path, typer.Argument(dir_okay=False, help="Trace to write, such as trace.json.")],
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Default: the checkpoint's first.")
    ] = None,
    what: Annotated[Traced, typer.Option(help="One forward, or the whole first clip.")] = Traced.FORWARD,
    timestep: Annotated[
        float, typer.Option(min=0, max=1000, help="Of the forward; from 900 up without experts.")
    ] = 500.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the clip.")] = 2,
) -> None:
    """Write a profiler's trace of one forward or one clip. Open it at https://ui.perfetto.dev."""
    with explained_errors():
        with complaints.status("Loading"):
            from cli.bench import ProfileOptions, run_profile
        options = ProfileOptions(
            checkpoint, device, size, output, timestep if what is Traced.FORWARD else None, steps
        )
        with complaints.status("Profiling …"):
            run_profile(options)
    console.print(f"{output}: open it at https://ui.perfetto.dev", highlight=False, markup=False)
