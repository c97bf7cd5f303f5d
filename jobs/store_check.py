"""Whether a whole store is sound.

Nothing is changed, and the service may run meanwhile: what looks wrong is looked at again, because a job may
be removed while it is being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from contract.job import JOB_ID
from jobs.artifacts import ArtifactStore
from jobs.job_check import JobCheck, check_file
from jobs.journal import JOBS_FOLDER
from jobs.kept_files import FILE_ID, FILES_FOLDER, OWNER, KeptFile, record_key
from jobs.record_kinds import RecordKind, check_record
from jobs.store_report import StoreReport, Wrong

LOOKS_AT_ONCE: Final = 8
BATCH: Final = 256

Progress = Callable[[StoreReport], None]


@dataclass(frozen=True)
class StoreCheck:
    """Checks one store."""

    store: ArtifactStore
    records: Sequence[RecordKind]
    """The kinds of small files beside the jobs."""
    job_records: Sequence[RecordKind]
    """The kinds of small files in the folder of a job."""

    def run(self, on_progress: Progress = lambda report: None) -> StoreReport:
        """Check everything. Raises OSError if the store as a whole does not answer."""
        report = StoreReport()
        self._check_all(self._jobs, self._check_job, report, on_progress)
        self._check_all(self._kept_files, self._check_kept_file, report, on_progress)
        for kind in self.records:
            for name in self.store.list_names(kind.folder):
                if kind.name.fullmatch(name):
                    check_record(self.store, kind, f"{kind.folder}/{name}", report)
                elif not any(other.name.fullmatch(name) for other in self._beside(kind)):
                    report.note(Wrong.STRAY, f"{kind.folder}/{name}", "not a name that we give")
            on_progress(report)
        for place, what in self.store.unreachable():
            report.note(Wrong.LEFTOVER if place.startswith("trees/") else Wrong.STRAY, place, what)
        return report

    def _beside(self, kind: RecordKind) -> list[RecordKind]:
        return [other for other in self.records if other.folder == kind.folder and other is not kind]

    def _check_all(
        self,
        list_parts: Callable[[StoreReport], Iterator[str]],
        check: Callable[[str], StoreReport],
        report: StoreReport,
        on_progress: Progress,
    ) -> None:
        doubtful = []
        parts = list_parts(report)
        with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="check") as pool:
            while batch := list(islice(parts, BATCH)):
                for part, found in zip(batch, pool.map(check, batch), strict=True):
                    if found.is_whole:
                        report.add(found)
                    else:
                        doubtful.append(part)
                on_progress(report)
        still_there = set(list_parts(StoreReport())) if doubtful else set()
        for part in doubtful:
            if part in still_there:
                report.add(check(part))
                on_progress(report)

    def _jobs(self, report: StoreReport) -> Iterator[str]:
        for name in self.store.list_names(JOBS_FOLDER):
            if JOB_ID.fullmatch(name):
                yield name
            else:
                report.note(Wrong.STRAY, f"{JOBS_FOLDER}/{name}", "not the name of a job")

    def _check_job(self, job_id: str) -> StoreReport:
        return JobCheck(self.store, job_id, self.job_records).run()

    def _kept_files(self, report: StoreReport) -> Iterator[str]:
        """The owner and id of each, with a slash between them."""
        for owner in self.store.list_names(FILES_FOLDER):
            if not OWNER.fullmatch(owner):
                report.note(Wrong.STRAY, f"{FILES_FOLDER}/{owner}", "not the name of an owner")
                continue
            for name in self.store.list_names(f"{FILES_FOLDER}/{owner}"):
                if FILE_ID.fullmatch(name):
                    yield f"{owner}/{name}"
                else:
                    report.note(Wrong.STRAY, f"{FILES_FOLDER}/{owner}/{name}", "not the name of a kept file")

    def _check_kept_file(self, part: str) -> StoreReport:
        report = StoreReport(kept_files=1)
        key = record_key(*part.split("/"))
        try:
            data = self.store.read(key)
            if data is None:
                report.problem(Wrong.MISSING, key, "it says what the kept file is")
                return report
            file = KeptFile.stored(data)
        except OSError as error:
            report.problem(Wrong.UNANSWERED, key, error.strerror or str(error))
        except ValueError:
            report.problem(Wrong.DAMAGED, key, "cannot be read")
        else:
            if not check_file(self.store, file.key, file.decoded, report):
                report.problem(Wrong.MISSING, file.key, f"a kept file, with {file.decoded.size} bytes")
        return report
