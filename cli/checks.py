"""The commands that check things: healthy, doctor, check, simulate, chaos.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import (
    FAILED,
    DataOption,
    complaints,
    connected,
    console,
    explained_errors,
    settings_with,
)

if TYPE_CHECKING:
    from chaos.storage import RemoteStorage

checks = typer.Typer()


class CheckedPart(StrEnum):
    API = "api"
    WORKER = "worker"


@checks.command(rich_help_panel="Check the service")
def healthy(
    part: Annotated[CheckedPart, typer.Argument(help="The part that should run on this host.")],
) -> None:
    """Exit with status 0 if this host's API or worker is alive, for a container's health check."""
    from cli.health import why_api_is_unhealthy, why_worker_is_unhealthy

    with explained_errors():
        settings = settings_with()
        if part is CheckedPart.API:
            reason = why_api_is_unhealthy(settings)
        else:
            reason = why_worker_is_unhealthy(*connected(settings))
    if reason is not None:
        complaints.print(reason, style="red", highlight=False, markup=False)
        raise typer.Exit(FAILED)


@checks.command(rich_help_panel="Check the service")
def doctor(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", "-c", metavar="[NAME=]DIR", help="Checkpoint folder; repeatable."),
    ] = None,
    data: DataOption = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every file with its checksum: reads all of it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what fits on this machine, what is wrong and what to do.

    Exit status 1 if something must be fixed.
    """
    from deploy.up import named_checkpoints

    with explained_errors():
        folders = named_checkpoints(checkpoint or [])
        settings = settings_with(data_dir=data)
        with complaints.status("Examining this machine …"):
            from cli.doctor import as_json as to_json
            from cli.doctor import diagnose, show

            diagnosis = diagnose(settings, folders, verify)
    if as_json:
        typer.echo(to_json(diagnosis))
    else:
        show(diagnosis, console)
    if diagnosis.has_problems:
        raise typer.Exit(FAILED)


@checks.command(rich_help_panel="Check the service")
def check(
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read all that is stored, and say what is missing, damaged, of a newer version or not ours.

    Compares every file with the hash in its job's journal, and changes nothing; the service may run
    meanwhile. Exit status 1 if something is lost or cannot be served.
    """
    from cli.check_store import as_json as to_json
    from cli.check_store import check_store, show

    with explained_errors():
        settings = settings_with(data_dir=data)
        with complaints.status("Reading …") as status:
            report = check_store(settings, lambda words: status.update(words))
    if as_json:
        typer.echo(to_json(report))
    else:
        show(report, console)
    if not report.is_whole:
        raise typer.Exit(FAILED)


@checks.command(rich_help_panel="Check the service")
def simulate(
    workers: Annotated[int, typer.Option(min=1, help="Simulated workers.")] = 1000,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that wait.")] = 100_000,
    owners: Annotated[int, typer.Option(min=1, help="Owners of them; ten have half of all.")] = 1000,
    claims: Annotated[int, typer.Option(min=1, help="Jobs to start, of those.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the jobs' owners, sizes and durations.")] = 0,
) -> None:
    """Fill a queue on a Redis of its own, let simulated workers take jobs, and print what each call costs.

    Queue and scheduling are the real ones; nothing is rendered, by a clock that is not waited for.
    """
    from chaos.simulate import Simulation
    from chaos.simulate import simulate as run

    with explained_errors():
        figures = run(Simulation(workers, jobs, owners, claims, seed))
    typer.echo(json.dumps(dataclasses.asdict(figures)))


@checks.command(rich_help_panel="Check the service")
def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="Jobs to submit.")] = 1000,
    kills: Annotated[int, typer.Option(min=0, help="Processes to kill: API, workers, reaper, Redis.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the part with faults.")] = 300,
    workers: Annotated[int, typer.Option(min=1, help="Workers to run.")] = 3,
    outage: Annotated[float, typer.Option(min=0, help="Seconds without Redis in the middle of it.")] = 0,
    overload: Annotated[float, typer.Option(min=0, help="Seconds of flooding the API afterwards.")] = 0,
    noisy_neighbour: Annotated[
        float, typer.Option(min=0, help="Instead: seconds of one key's flood beside another's few jobs.")
    ] = 0,
    apis: Annotated[int, typer.Option(min=1, help="API processes that share the work.")] = 1,
    power_cuts: Annotated[
        int, typer.Option(min=0, help="Times that the power goes, on a disk of its own. Needs root.")
    ] = 0,
    storage: Annotated[
        str,
        typer.Option(
            metavar="folder|s3|s3://BUCKET/PREFIX",
            help="s3: parts that share no disk, and a server that fails now and then. Or a bucket of yours.",
        ),
    ] = "folder",
    webhooks: Annotated[
        bool,
        typer.Option("--webhooks", help="Let jobs name webhooks, half of them a black hole. Needs root."),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Jobs to submit per second before the first fault. Default: 50; with S3 4."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of faults. The report names it.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Kill parts of a stack of its own while jobs run, and count what was lost. A fast engine renders.

    Exit status 1 if any promise of docs/reliability.md was broken.
    """
    from chaos.disk import NoDisk
    from chaos.neighbour import run_neighbours
    from chaos.receivers import NoNetwork
    from chaos.report import as_json as to_json
    from chaos.report import show
    from chaos.run import Options, run_chaos
    from deploy.stack import StackError

    with explained_errors():
        if sys.platform != "linux":
            raise StackError("`cointeract chaos` needs Linux: it finds its victims in /proc.")
        if noisy_neighbour:
            neighbours = run_neighbours(noisy_neighbour, seed)
            typer.echo(neighbours.as_json())
            if not neighbours.ok():
                raise typer.Exit(FAILED)
            return
        options = Options(
            jobs, kills, seconds, workers, outage, overload, apis, power_cuts, webhooks, rate, seed
        )
        try:
            with _remote_storage(storage, seed, power_cuts) as remote:
                report = run_chaos(dataclasses.replace(options, storage=remote))
        except (NoDisk, NoNetwork) as reason:
            raise StackError(f"{reason}.") from reason
    if as_json:
        typer.echo(to_json(report))
    else:
        show(report, console)
    if not report.ok():
        raise typer.Exit(FAILED)


def _remote_storage(storage: str, seed: int, power_cuts: int) -> AbstractContextManager[RemoteStorage | None]:
    """What `--storage` names. Raises StackError."""
    from chaos.storage import RemoteStorage
    from deploy.stack import StackError

    if storage == "folder":
        return nullcontext()
    if power_cuts:
        raise StackError("--power-cuts needs --storage folder: what lies in S3 is on no disk of ours.")
    if storage.startswith("s3://"):
        return nullcontext(RemoteStorage.at(storage))
    if storage != "s3":
        raise StackError(f"--storage {storage}: give folder, s3, or s3://bucket/prefix.")
    try:
        from chaos.own_s3 import storage_of_our_own
    except ModuleNotFoundError as error:
        advice = "pip install 'cointeract-server[chaos]', or name a bucket: s3://bucket/prefix"
        raise StackError(
            f"--storage s3 runs a server of its own, for which {error.name} is missing: {advice}."
        ) from error
    return storage_of_our_own(seed)
