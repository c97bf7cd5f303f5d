"""`cointeract jobs`: shows, follows, cancels and deletes the jobs of a server, and saves their videos.

Imports inside the commands: see `cli.app`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from cli.common import FAILED, ApiKeyOption, ServerOption, complaints, console, explained_errors

if TYPE_CHECKING:
    from cointeract_client import Job

jobs = typer.Typer(no_args_is_help=True, help="The jobs of a server.")
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job: job_…")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of the jobs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Status(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


def _pairs(texts: list[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping. Raises typer.BadParameter."""
    pairs = dict(text.partition("=")[::2] for text in texts)
    if any("=" not in text for text in texts):
        raise typer.BadParameter("expected KEY=VALUE", param_hint="--metadata")
    return pairs


@jobs.command("list")
def list_jobs(
    status: Annotated[list[Status] | None, typer.Option(help="Only in this state; repeat it.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this checkpoint.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only with this metadata; repeat it.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Only submitted after this time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only submitted before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 20,
    as_json: JsonOption = False,
    url: ServerOption = "http://127.0.0.1:8000",
    api_key: ApiKeyOption = None,
) -> None:
    """List jobs, the newest first."""
    from itertools import islice

    from cli.service import service

    labels = _pairs(metadata or [])
    with explained_errors(), service(url, api_key) as client:
        found = client.jobs(
            status=[each.value for each in status or ()],
            model=model,
            created_after=since,
            created_before=until,
            metadata=labels,
            page_size=min(limit, 100),
        )
        shown = list(islice(found, limit))
        if as_json:
            for job in shown:
                console.print_json(job.model_dump_json(), indent=None)
            return
        table = Table(Column("job", no_wrap=True), "status", "progress", "submitted", "model", "prompt")
        for job in shown:
            prompts = job.params.get("prompts") or [""]
            table.add_row(
                job.id,
                job.status,
                f"{job.progress:.0f} %",
                f"{job.created_at.astimezone():%Y-%m-%d %H:%M}",
                job.model,
                str(prompts[0])[:60],
            )
        console.print(table)


@jobs.command()
def show(
    job_id: JobArgument,
    as_json: JsonOption = False,
    url: ServerOption = "http://127.0.0.1:8000",
    api_key: ApiKeyOption = None,
) -> None:
    """Show a job."""
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        job = client.job(job_id)
        if as_json:
            console.print_json(job.model_dump_json())
        else:
            _print_job(job)


def _print_job(job: Job) -> None:
    said: dict[str, object] = {
        "job": job.id,
        "status": job.status,
        "progress": f"{job.progress:.0f} % {job.stage}, clip {job.clip} of {job.num_clips}",
        "place in the queue": job.queue_position,
        "submitted": job.created_at.astimezone().isoformat(" ", "seconds"),
        "finished": job.completed_at and job.completed_at.astimezone().isoformat(" ", "seconds"),
        "expected": job.estimated_finish_at and f"{job.estimated_finish_at.astimezone():%H:%M:%S}",
        "model": job.model,
        "size": job.params.get("size"),
        "steps": job.num_steps,
        "preset": job.params.get("preset"),
        "seed": job.seed,
        "metadata": ", ".join(f"{key}={value}" for key, value in job.metadata.items()),
        "GPU seconds": job.usage.gpu_seconds,
        "error": job.error and f"{job.error.code}: {job.error.message}",
    }
    for name, value in said.items():
        if value not in (None, ""):
            console.print(f"{name:<19} {value}", highlight=False, markup=False)
    for warning in job.warnings:
        console.print(f"warning             {warning.message}", style="yellow", highlight=False, markup=False)


@jobs.command()
def watch(
    job_id: JobArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Follow a job until it is over. Ctrl-C leaves it running. Exit status: 0 if it succeeded, else 1."""
    from cli.generate import ProgressDisplay, show_job
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        with ProgressDisplay(console).shown() as display:
            job = client.wait(job_id, on_progress=lambda now: show_job(display, now))
        console.print(f"{job.id} has succeeded.", highlight=False)


@jobs.command()
def log(
    job_id: JobArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Show a job's history, with the messages of its workers."""
    from cli.service import service

    with explained_errors(), service(url, api_key) as client:
        for line in client.log(job_id):
            text = f"{line.at.astimezone():%H:%M:%S} {line.level:<7} {line.message}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)


@jobs.command()
def cancel(
    job_ids: JobsArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Stop jobs for good. Their finished clips stay."""
    _each(job_ids, url, api_key, "canceled")


@jobs.command()
def delete(
    job_ids: JobsArgument, url: ServerOption = "http://127.0.0.1:8000", api_key: ApiKeyOption = None
) -> None:
    """Remove jobs with their files. A job that is not over is canceled first."""
    _each(job_ids, url, api_key, "deleted")


def _each(job_ids: list[str], url: str, api_key: str | None, verb: str) -> None:
    """Cancel or delete each job. An error with one job does not hold up the others."""
    from cointeract_client import ApiError

    from cli.service import explained, service

    failed = False
    with explained_errors(), service(url, api_key) as client:
        act = {"canceled": client.cancel, "deleted": client.delete}[verb]
        for job_id in job_ids:
            try:
                act(job_id)
                console.print(f"{job_id} {verb}", highlight=False)
            except ApiError as error:
                failed = True
                complaints.print(f"{job_id}: {explained(error)}", style="red", highlight=False, markup=False)
    if failed:
        raise typer.Exit(FAILED)


@jobs.command()
def get(
    job_id: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Where to save it. Default: JOB.mp4")
    ] = None,
    clip: Annotated[
        int | None, typer.Option(min=0, help="Only this clip, counted from 0, without sound.")
    ] = None,
    url: ServerOption = "http://127.0.0.1:8000",
    api_key: ApiKeyOption = None,
) -> None:
    """Save a job's video, or one of its clips."""
    from cli.service import service

    target = output or Path(f"{job_id}.mp4" if clip is None else f"{job_id}-{clip}.mp4")
    with explained_errors(), service(url, api_key) as client:
        if clip is None:
            client.download(job_id, target)
        else:
            client.download_clip(job_id, clip, target)
        console.print(f"Saved [bold]{target}[/]", highlight=False)
