"""Makes a video of each row of a table. A stopped run goes on where it stopped."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path

from cointeract_client.errors import ApiError
from cointeract_client.sync import Client
from cointeract_client.types import Job
from cointeract_client.wire import RETRIED

FILES = {
    "person": "person_image",
    "product": "product_image",
    "pose": "pose_video",
    "audio": "audio",
}
"""Field of each column that holds files. A column has the field's name or a short one."""
KIND_OF_FIELD = {"person_image": "image", "product_image": "image", "pose_video": "video", "audio": "audio"}
RESULTS = "results.csv"
BATCH_ID = ".batch-id"
POLL_S = 1.0
_PROMPT = re.compile(r"prompt[ _]?(\d*)")
_METADATA = re.compile(r"metadata\.(.+)")
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    number: int
    """The row's number, from 1."""
    name: str
    """The video becomes NAME.mp4."""
    files: Mapping[str, str]
    """Paths or https: URLs, by field."""
    settings: Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Result:
    """The state of a row, as a line of results.csv."""

    row: int
    name: str
    state: str = "waiting"
    """waiting, submitted, succeeded, failed, canceled, refused (no job) or lost (the job is gone)."""
    job: str = ""
    error: str = ""
    file: str = ""
    seed: str = ""
    request: str = ""
    """A hash of all that the row asks for. If it changes, the row's video is made again."""

    @property
    def is_final(self) -> bool:
        return self.state not in ("waiting", "submitted")


OnResult = Callable[[Result], None]


def read_rows(table: str | PathLike[str]) -> list[Row]:
    """The rows of a CSV file with a header.

    Columns: `person`, `product`, `audio`, `pose` (paths from the table's folder, or https: URLs), `prompt`,
    `prompt2`, … (one per clip), `name` (of the video), `metadata.KEY`, and any other field of a submit.

    Raises OSError, or ValueError if the table has a mistake. The message says in which row.
    """
    path = Path(table)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = [_row(number, line, path.parent) for number, line in enumerate(reader, start=1)]
    names = [row.name for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two rows are named {twice!r}")
    return rows


def _row(number: int, line: Mapping[str | None, str | list[str] | None], folder: Path) -> Row:
    name, files, prompts = f"{number:04d}", {}, {}
    settings: dict[str, str | list[str]] = {}
    metadata: dict[str, str] = {}
    for column, value in line.items():
        if column is None:
            raise ValueError(f"row {number} has more cells than the table has columns")
        if not isinstance(value, str) or not value.strip():
            continue
        key = column.strip()
        if key == "name":
            name = _NAME.sub("-", value.strip()).strip(".-") or name
        elif key in FILES or key in KIND_OF_FIELD:
            given = value.strip()
            files[FILES.get(key, key)] = given if _is_reference(given) else os.fspath(folder / given)
        elif match := _PROMPT.fullmatch(key):
            prompts[int(match[1] or 1)] = value
        elif match := _METADATA.fullmatch(key):
            metadata[match[1]] = value
        else:
            settings[key] = value
    if "person_image" not in files:
        raise ValueError(f"row {number} names no person; fill its column person")
    if prompts:
        settings["prompt"] = [prompts[place] for place in sorted(prompts)]
    if metadata:
        settings["metadata"] = json.dumps(metadata)
    return Row(number, name, files, settings)


def run_batch(
    client: Client,
    rows: Sequence[Row],
    out: str | PathLike[str],
    *,
    at_once: int = 8,
    retry: bool = False,
    on_result: OnResult | None = None,
) -> list[Result]:
    """Make a video of each row in the folder `out`, and keep `results.csv` there up to date.

    Each distinct file is sent once. A stopped run goes on where it stopped. It leaves finished rows alone and
    finds the jobs that it had submitted. A row that is refused or fails does not hold up the others.

    Args:
        at_once: how many jobs wait or run at the same time.
        retry: try rows again that ended without a video in an earlier run.
        on_result: called after each change with the row's new state.

    Raises ConnectionFailed, ApiError if the server refuses everything (401), OSError.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    batch = _Batch(client, folder, _batch_id(folder), on_result)
    batch.begin(rows, retry)
    waiting = [row for row in rows if not batch.results[row.number].is_final]
    running: dict[int, str] = {}
    while waiting or running:
        is_full = False
        while waiting and len(running) < at_once and not is_full:
            job = batch.submit(waiting[0])
            is_full = job is None and not batch.results[waiting[0].number].is_final
            if not is_full:
                row = waiting.pop(0)
                running |= {row.number: job} if job is not None else {}
        for number, job in list(running.items()):
            if batch.look_at(number, job):
                del running[number]
        if running or is_full:
            time.sleep(POLL_S)
    return [batch.results[row.number] for row in rows]


@dataclass
class _Batch:
    client: Client
    folder: Path
    id: str
    on_result: OnResult | None
    results: dict[int, Result] = field(default_factory=dict)
    _kept: dict[tuple[str, str], str] = field(default_factory=dict)
    """Ids of the files that have been sent, by path and kind."""

    def begin(self, rows: Sequence[Row], retry: bool) -> None:
        """Read the results of an earlier run."""
        earlier = {result.row: result for result in _read_results(self.folder / RESULTS)}
        for row in rows:
            request, known = _request_of(row), earlier.get(row.number)
            fresh = Result(row.number, row.name, request=request)
            if known is None or known.request != request:
                known = fresh
            elif known.is_final and retry and not known.file:
                known = replace(fresh, job=known.job)  # so that its next job is another one
            if known.state == "succeeded" and not (self.folder / known.file).exists():
                known = replace(known, state="submitted", file="")
            self.results[row.number] = known
        self._save()

    def submit(self, row: Row) -> str | None:
        """Submit the row and return its job's id. None if it is refused, or if the server is too busy yet."""
        known = self.results[row.number]
        if known.job and known.state == "submitted":
            return known.job
        key = uuid.uuid5(uuid.UUID(self.id), f"{row.number} {known.request} {known.job}").hex
        try:
            files = {name: self._file(name, path) for name, path in row.files.items()}
            job = self.client.submit(
                person_image=files["person_image"],
                audio=files.get("audio"),
                product_image=files.get("product_image"),
                pose_video=files.get("pose_video"),
                idempotency_key=key,
                **row.settings,
            )
        except ApiError as error:
            if error.status in (401, 403):
                raise
            if error.code == "unknown_file" and not _is_reference(row.files.get(error.field or "", "")):
                self._kept.clear()  # what was sent has expired: it is sent again
            elif error.status not in RETRIED:
                self._note(replace(known, state="refused", error=str(error)))
            return None
        except OSError as error:
            self._note(replace(known, state="refused", error=f"{error.strerror}: {error.filename}"))
            return None
        self._note(replace(known, state="submitted", job=job.id, seed=str(job.seed), error=""))
        return job.id

    def look_at(self, number: int, job_id: str) -> bool:
        """Whether a job is over. If it has succeeded, its video is saved."""
        known = self.results[number]
        try:
            job = self.client.job(job_id)
            if not job.is_final:
                return False
            self._note(self._outcome(known, job))
        except ApiError as error:
            if error.status in RETRIED:
                return False
            self._note(replace(known, state="lost", error=str(error)))
        return True

    def _outcome(self, known: Result, job: Job) -> Result:
        if job.status != "succeeded":
            why = job.error.message if job.error is not None else ""
            return replace(known, state=job.status, error=why)
        name = f"{known.name}.mp4"
        self.client.download(job, self.folder / name)
        return replace(known, state="succeeded", file=name, error="")

    def _file(self, name: str, path: str) -> str:
        """A file's URL or id, to be used in a submit. A file is sent when it is first used."""
        if _is_reference(path):
            return path
        use = (path, KIND_OF_FIELD[name])
        if use not in self._kept:
            self._kept[use] = self.client.keep(path, kind=KIND_OF_FIELD[name]).id
        return self._kept[use]

    def _note(self, result: Result) -> None:
        self.results[result.row] = result
        self._save()
        if self.on_result is not None:
            self.on_result(result)

    def _save(self) -> None:
        """Replace results.csv in one step, because a run may be killed at any moment."""
        partial = self.folder / f"{RESULTS}.part"
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [each.name for each in fields(Result)])
            writer.writeheader()
            writer.writerows(asdict(self.results[number]) for number in sorted(self.results))
        partial.replace(self.folder / RESULTS)


def _is_reference(given: str) -> bool:
    """Whether a file is given as a URL, or as the id of a kept file."""
    return given.startswith(("https:", "http:", "file_"))


def _batch_id(folder: Path) -> str:
    """An id that sets apart this folder's jobs: the same table in another folder makes new videos."""
    path = folder / BATCH_ID
    try:
        return str(uuid.UUID(path.read_text(encoding="ascii").strip()))
    except (FileNotFoundError, ValueError):
        made = str(uuid.uuid4())
        path.write_text(made, encoding="ascii")
        return made


def _read_results(path: Path) -> Iterator[Result]:
    if not path.exists():
        return
    known = {each.name for each in fields(Result)} - {"row"}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if str(line.get("row", "")).isdecimal():
                yield Result(row=int(line["row"]), **{name: line[name] for name in known if line.get(name)})


def _request_of(row: Row) -> str:
    """A hash of all that a row asks for. Files count by path, size and time of change."""
    files: dict[str, object] = {}
    for name, path in row.files.items():
        known = Path(path)
        stat = known.stat() if known.is_file() else None
        files[name] = path if stat is None else [path, stat.st_size, stat.st_mtime_ns]
    text = json.dumps([row.name, files, row.settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
