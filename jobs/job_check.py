"""Whether one job is whole: each entry of its journal, and the hash of each file that an entry names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from contract.entries import ENTRY_TYPES, JOURNAL_ENTRY, JournalEntry, Submitted, stored_entry
from contract.job import StoredFile
from contract.state import Job
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.journal import IllegalEntry, apply, entry_key, file_key, in_short, job_prefix, submitted_job
from jobs.record_kinds import RecordKind, check_record
from jobs.store_report import StoreReport, Wrong

_ENTRY: Final = re.compile(r"(\d{6})\.json")
_INPUTS: Final = "inputs"
_JOURNAL: Final = "journal"


def check_file(store: ArtifactStore, key: str, wanted: StoredFile, report: StoreReport) -> bool:
    """Compare a file with what a record says of it, and add what is wrong to the report. False if there is
    none.
    """
    try:
        found = store.digest(key)
    except NoFileOfOurs as error:
        report.problem(Wrong.DAMAGED, key, error.strerror or str(error))
        return True
    except OSError as error:
        report.problem(Wrong.UNANSWERED, key, error.strerror or str(error))
        return True
    if found is None:
        return False
    digest, size = found
    report.files += 1
    report.bytes += size
    if size != wanted.size:
        report.problem(Wrong.DAMAGED, key, f"it has {size} bytes, and must have {wanted.size}")
    elif digest != wanted.sha256:
        report.problem(Wrong.DAMAGED, key, f"its SHA-256 is {digest}, and must be {wanted.sha256}")
    return True


@dataclass
class JobCheck:
    """The check of one job."""

    store: ArtifactStore
    job_id: str
    records: Sequence[RecordKind]
    """The kinds of small files in the folder of a job."""
    report: StoreReport = field(default_factory=StoreReport)

    def run(self) -> StoreReport:
        self.report.jobs = 1
        prefix = job_prefix(self.job_id)
        try:
            names = self.store.list_names(prefix)
            job = self._read_journal()
            if job is not None:
                known = self._check_files(job)
                self._look_for_others(names, known, job.state.is_terminal)
            for name in names:
                for kind in self.records:
                    if kind.name.fullmatch(name):
                        check_record(self.store, kind, f"{prefix}/{name}", self.report)
        except OSError as error:
            self.report.problem(Wrong.UNANSWERED, prefix, error.strerror or str(error))
        return self.report

    # The journal

    def _read_journal(self) -> Job | None:
        """The job as far as its journal can be followed; None if not even its first entry can be read."""
        folder = f"{job_prefix(self.job_id)}/{_JOURNAL}"
        last = 0
        for name in self.store.list_names(folder):
            if match := _ENTRY.fullmatch(name):
                last = max(last, int(match[1]))
            else:
                self.report.note(Wrong.STRAY, f"{folder}/{name}", "not the name of an entry")
        job: Job | None = None
        for number in range(last + 1):
            entry = self._entry(number)
            if entry is None:
                return job
            try:
                job = self._after(job, entry)
            except (IllegalEntry, ValueError) as error:
                self.report.problem(Wrong.DAMAGED, entry_key(self.job_id, number), str(error))
                return job
        return job

    def _after(self, job: Job | None, entry: JournalEntry) -> Job:
        if job is not None:
            return apply(job, entry)
        if isinstance(entry, Submitted):
            return submitted_job(self.job_id, entry)
        raise ValueError(f"the first entry is {entry.type}, not submitted")

    def _entry(self, number: int) -> JournalEntry | None:
        key = entry_key(self.job_id, number)
        try:
            data = self.store.read(key)
        except NoFileOfOurs as error:
            self.report.problem(Wrong.DAMAGED, key, error.strerror or str(error))
            return None
        if data is None:
            self.report.problem(Wrong.MISSING, key, "the journal lacks this entry: what follows is lost")
            return None
        try:
            return JOURNAL_ENTRY.validate_json(data)
        except ValidationError as error:
            return self._foreign_entry(key, data, error)

    def _foreign_entry(self, key: str, data: bytes, error: ValidationError) -> JournalEntry | None:
        """An entry with something in it that this version does not know."""
        try:
            entry = stored_entry(data)
        except ValidationError as unreadable:
            error = unreadable
        else:
            fields = ", ".join(".".join(map(str, each["loc"][1:])) for each in error.errors())
            self.report.note(Wrong.NEWER, key, f"this version does not know, and ignores: {fields}")
            return entry
        try:
            written = json.loads(data)
        except (ValueError, RecursionError):
            written = None
        kind = written.get("type") if isinstance(written, dict) else None
        if isinstance(kind, str) and kind not in ENTRY_TYPES:
            self.report.problem(Wrong.NEWER, key, f"this version does not know entries of the type {kind!r}")
        else:
            self.report.problem(Wrong.DAMAGED, key, f"cannot be read: {in_short(error)}")
        return None

    # Files

    def _check_files(self, job: Job) -> set[str]:
        """Check what the journal names; returns the names."""
        names = set()
        for file, is_needed in _files_of(job):
            if file.name in names:
                continue
            names.add(file.name)
            key = file_key(self.job_id, file)
            if not check_file(self.store, key, file, self.report) and is_needed:
                self.report.problem(Wrong.MISSING, key, f"the journal names it, with {file.size} bytes")
        return names

    def _look_for_others(self, names: Sequence[str], known: set[str], is_over: bool) -> None:
        prefix = job_prefix(self.job_id)
        inputs = [f"{_INPUTS}/{name}" for name in self.store.list_names(f"{prefix}/{_INPUTS}")]
        for name in [*names, *inputs]:
            is_record = any(kind.name.fullmatch(name) for kind in self.records)
            if name in known or name in (_INPUTS, _JOURNAL) or is_record:
                continue
            if is_over:  # an attempt stores files before it names them
                self.report.note(Wrong.LEFTOVER, f"{prefix}/{name}", "nothing in the journal names it")


def _files_of(job: Job) -> Iterator[tuple[StoredFile, bool]]:
    """Each file of the job, and whether it must be there: frames between clips may be dropped."""
    inputs = job.submitted.inputs
    for file in (inputs.person_image, inputs.audio, inputs.product_image, inputs.pose_video):
        if file is not None:
            yield file, True
    for file in (job.submitted.thumbnail, job.video, job.poster):
        if file is not None:
            yield file, True
    for number, clip in enumerate(job.clips, start=1):
        for file in clip.shown_files:
            yield file, True
        if clip.motion is not None:
            goes_on = not job.state.is_terminal and number == len(job.clips)
            yield clip.motion, job.submitted.keep_motion or goes_on
