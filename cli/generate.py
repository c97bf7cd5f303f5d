"""`cointeract generate`: one video, through a server or in this process, with the same progress display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cointeract_client import Client, Job
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cli.service import note_of
from contract.form import form_of
from contract.job import utcnow
from contract.request import GenerateFields, fields_of


class GenerationFailed(Exception):
    """The job ended without a video. The message says why."""


@dataclass(frozen=True)
class Made:
    """A saved video."""

    seed: int | None
    caveat: str
    """A note about the checkpoint that viewers of the video should know; may be empty."""
    job_id: str | None = None
    """The job that made it, if a server did."""


def caveat(trained: bool, note: str) -> str:
    """The card's note, preceded by a warning if the checkpoint is untrained."""
    return note if trained else f"The checkpoint is untrained: the picture is noise. {note}".strip()


@dataclass(frozen=True)
class GenerateOptions:
    """The fields and files of the command line, named as in `POST /v1/generate`."""

    fields: GenerateFields
    files: Mapping[str, Path]


def options_of(fields: Mapping[str, Any], files: Mapping[str, Path | None]) -> GenerateOptions:
    """The options of the given fields and files; None leaves one out. Raises FieldError."""
    return GenerateOptions(
        fields_of({name: value for name, value in fields.items() if value is not None}),
        {name: path for name, path in files.items() if path is not None},
    )


class ProgressDisplay:
    """A bar with stage, clip, step and the time left. On a pipe, a line for each stage of each clip."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<10}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=100.0, stage="submitting", detail="", left="")

    @contextmanager
    def shown(self) -> Iterator[ProgressDisplay]:
        with self._progress:
            yield self

    def show(self, percent: float, stage: str, detail: str = "", left_s: float | None = None) -> None:
        left = "" if left_s is None else f"{_duration(left_s)} left"
        self._progress.update(self._task, completed=percent, stage=stage, detail=detail, left=left)
        line = " ".join(word for word in (stage, detail.partition(" · ")[0]) if word)
        if not self._console.is_terminal and line != self._last_line:
            self._console.print(f"{percent:3.0f} % {line}", highlight=False)
        self._last_line = line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def generate_over_http(options: GenerateOptions, output: Path, client: Client, console: Console) -> Made:
    """Submit, follow, download. Ctrl-C cancels. Raises CoInteractError."""
    files = dict(options.files)
    person, audio = files.pop("person_image"), files.pop("audio", None)
    given: dict[str, Any] = {**form_of(options.fields), **files}
    job = client.submit(person_image=person, audio=audio, **given)
    console.print(f"Job [bold]{job.id}[/] submitted to {client.url}", highlight=False)
    try:
        with ProgressDisplay(console).shown() as display:
            job = client.wait(job, on_progress=lambda now: show_job(display, now))
    except KeyboardInterrupt:
        client.cancel(job.id)
        raise
    client.download(job, output)
    return Made(job.seed, caveat(job.checkpoint.trained, note_of(client, job.checkpoint.name)), job.id)


def show_job(display: ProgressDisplay, job: Job) -> None:
    """Update the display with the job's progress."""
    left = None
    if job.estimated_finish_at is not None:
        left = (job.estimated_finish_at - utcnow()).total_seconds()
    display.show(job.progress, job.stage or job.status, _detail(job), left)


def _detail(job: Job) -> str:
    if job.status == "queued" and job.queue_position is not None:
        return f"place {job.queue_position} in the queue"
    if job.status != "processing" or not job.num_clips:
        return ""
    clip = f"clip {min(job.clip + 1, job.num_clips)}/{job.num_clips}"
    return f"{clip} · step {job.step or 0}/{job.num_steps}" if job.num_steps else clip
