"""The `cointeract` command, and the commands that run the service. Each is a thin layer over a module.

The `cli` modules, and no others, import inside their functions. So `cointeract --help` answers in a fraction
of a second, and only commands that compute load torch.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated

import typer

from cli.admin import admin
from cli.batch import batches
from cli.checkpoints import checkpoints
from cli.checks import checks
from cli.common import DataOption, connected, console, explained_errors, settings_with
from cli.jobs import jobs
from cli.keys import keys
from cli.measuring import measuring
from cli.videos import videos

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from contract.version import installed_version

        typer.echo(f"cointeract {installed_version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """CoInteract: a person photo, a product photo, prompts and speech become a video."""


HostOption = Annotated[
    str | None, typer.Option("--host", help="Address the API binds to. Default: 127.0.0.1")
]
PortOption = Annotated[int | None, typer.Option("--port", "-p", help="Port the API binds to. Default: 8000")]


@app.command(rich_help_panel="Run the service")
def up(
    port: PortOption = None,
    host: HostOption = None,
    data: DataOption = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="[NAME=]DIR",
            help="Checkpoint folder to serve; repeat it to serve several. Default: the bundled small one.",
        ),
    ] = None,
    gpus_per_job: Annotated[
        int,
        typer.Option(min=1, help="GPUs that render one job together. Default: each renders jobs of its own."),
    ] = 1,
) -> None:
    """Run everything on this machine: Redis, API, reaper, and a worker per GPU (or one on the CPU).

    Whatever dies is restarted. Ctrl-C stops everything; jobs and results stay in the data folder.
    """
    from deploy.stack import StackError
    from deploy.up import run_up
    from server.decoding.seccomp import why_not_to_decode, why_unconfined

    with explained_errors():
        settings = settings_with(data_dir=data, host=host, port=port)
        if (reason := why_not_to_decode(settings.allow_unconfined_decoding)) is not None:
            raise StackError(reason)
        if (missing := why_unconfined()) is not None:
            console.print(f"{missing}.", style="yellow", highlight=False, markup=False)
        run_up(settings, checkpoint or [], gpus_per_job, console)


@app.command(rich_help_panel="Run the service")
def serve(port: PortOption = None, host: HostOption = None, data: DataOption = None) -> None:
    """Run the HTTP API alone. It needs Redis (COINTERACT_REDIS_URL) and the data folder of the workers."""
    from deploy.stack import StackError
    from jobs.logs import configure_logging
    from server.app import StartRefusedError
    from server.app import serve as serve_api

    with explained_errors():
        settings, _ = connected(settings_with(data_dir=data, host=host, port=port))
        configure_logging(settings)
        try:
            serve_api(settings)
        except StartRefusedError as error:
            raise StackError(str(error)) from error


@app.command(rich_help_panel="Run the service")
def worker(
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="[NAME=]DIR",
            help="Checkpoint folder to render with. Default: the bundled small one.",
        ),
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            "--devices",
            "--device",
            help="cpu, cuda, cuda:N or N; several with commas render one job together. auto takes a GPU if "
            "there is one.",
        ),
    ] = "auto",
    data: DataOption = None,
) -> None:
    """Run one worker alone: a supervisor and the processes that hold the model, one per device."""
    from contract.devices import parse_devices
    from deploy.samples import BUNDLED_CHECKPOINT
    from deploy.stack import StackError
    from deploy.stack import devices as found_devices
    from deploy.up import named_checkpoints
    from jobs.logs import configure_logging
    from workers.supervisor import run

    with explained_errors():
        ((name, folder),) = named_checkpoints([checkpoint or str(BUNDLED_CHECKPOINT)]).items()
        settings, redis_url = connected(settings_with(data_dir=data))
        configure_logging(settings)
        try:
            chosen = parse_devices(found_devices()[0] if devices == "auto" else devices)
        except ValueError as error:
            raise StackError(f"--devices: {error}.") from error
        run(settings, redis_url, folder, chosen, checkpoint=name)


@app.command(rich_help_panel="Run the service")
def reaper(data: DataOption = None) -> None:
    """Run the reaper alone: it puts back the jobs of dead workers and repairs what Redis has lost."""
    from jobs.logs import configure_logging
    from workers.reaper import run

    with explained_errors():
        settings, redis_url = connected(settings_with(data_dir=data))
        configure_logging(settings)
        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        run(settings, redis_url, stopping)


@app.command(rich_help_panel="Run the service")
def drain(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Longest wait for the clip that is being rendered.")
    ] = 900.0,
    data: DataOption = None,
) -> None:
    """Prepare this machine's workers for their end: take no other job, and wait for the end of a clip.

    Run it beside them, before you stop them. What is left of a job goes on elsewhere behind that clip. Exit
    status 1 if the clip took longer.
    """
    from jobs.logs import configure_logging
    from jobs.queue import JobQueue
    from workers.draining import drain_here

    with explained_errors():
        settings, redis_url = connected(settings_with(data_dir=data))
        configure_logging(settings)
        if not drain_here(JobQueue(settings, redis_url), seconds):
            raise typer.Exit(1)


app.add_typer(jobs, name="jobs", rich_help_panel="Make videos")
app.add_typer(admin, name="admin", rich_help_panel="Run the service")
app.add_typer(keys, name="keys", rich_help_panel="Run the service")
for commands in (videos, batches, checkpoints, checks, measuring):
    app.add_typer(commands)


if __name__ == "__main__":
    app(prog_name=os.environ.get("COINTERACT_PROGRAM", "cointeract"))
