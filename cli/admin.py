"""`cointeract admin`: workers, queue and keys of a server, for holders of an admin's key.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from cli.common import ApiKeyOption, ServerOption, complaints, console, explained_errors

admin = typer.Typer(no_args_is_help=True, help="A server's workers, queue and keys, for admins.")
WorkerArgument = Annotated[str, typer.Argument(metavar="WORKER", help="Its name, from `admin workers`.")]


@admin.command()
def workers(url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None) -> None:
    """List the live workers: device, speed, problem, and the job that each renders."""
    from cli.service import service

    table = Table(
        Column("worker", overflow="fold"), "model", "device", "memory", "attention", "s/clip", "state", "job"
    )
    with explained_errors(), service(url, api_key) as client:
        found = client.workers()
        for worker in found.data:
            state = "ready" if worker.ready else "loading"
            state = "draining" if worker.draining else worker.problem or state
            job = worker.job
            table.add_row(
                worker.name,
                worker.model,
                worker.device,
                worker.memory_mode or "",
                worker.attention or "",
                "" if worker.seconds_per_clip is None else f"{worker.seconds_per_clip:.1f}",
                state,
                "" if job is None else f"{job.id} {job.progress:.0f} % {job.stage}",
            )
        console.print(table)
        for problem in found.problems:
            complaints.print(problem, style="red", highlight=False, markup=False)


@admin.command()
def queue(url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None) -> None:
    """Show the waiting jobs, in the order in which they start."""
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        for each in client.queue():
            said = f"{each.model}: {each.waiting} waiting, {each.running} running, {each.workers} workers"
            console.print(said, highlight=False, markup=False)
            table = Table("", Column("job", no_wrap=True), "owner", "priority", "starts")
            for job in each.data:
                start = job.estimated_start_at
                starts = "" if start is None else f"{start.astimezone():%H:%M:%S}"
                table.add_row(str(job.position), job.id, job.owner, job.priority, starts)
            if each.data:
                console.print(table)


@admin.command()
def owners(url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None) -> None:
    """List the keys, with the use and the limits of each."""
    from cli.service import service

    table = Table(Column("key", no_wrap=True), "name", "jobs", "GPU s, 24 h", "stored", "files", "limits")
    with explained_errors(), service(url, api_key) as client:
        for owner in client.owners():
            limits = {name: limit for name, limit in owner.limits.items() if limit is not None}
            table.add_row(
                owner.key,
                (owner.name or "") + (" (revoked)" if owner.revoked_at else ""),
                ", ".join(f"{count} {state}" for state, count in owner.jobs.items() if count),
                f"{owner.gpu_seconds_24h:.0f}",
                f"{owner.stored_bytes / 1e6:.0f} MB",
                str(owner.files),
                "\n".join(f"{name} {limit:g}" for name, limit in limits.items()),
            )
        console.print(table)


@admin.command()
def drain(
    worker: WorkerArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Let a worker finish its job and take no other, until it is resumed or restarted."""
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        job = client.drain(worker).job
        busy = "" if job is None else f" It still finishes {job.id}."
        console.print(f"{worker} takes no more jobs.{busy}", highlight=False, markup=False)


@admin.command()
def resume(
    worker: WorkerArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Let a drained worker take jobs again."""
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        client.resume(worker)
        console.print(f"{worker} takes jobs again.", highlight=False, markup=False)
