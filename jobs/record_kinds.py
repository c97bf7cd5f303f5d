"""Small files in the store: where each kind of them lies, and how one is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from jobs.artifacts import ArtifactStore
from jobs.store_report import StoreReport, Wrong


@dataclass(frozen=True)
class RecordKind:
    """The files of one kind in a folder. The module that writes them declares it."""

    folder: str
    """In the store; empty for files in the folder of a job."""
    name: re.Pattern[str]
    """What the names of such files look like."""
    read: Callable[[str, bytes], object]
    """Reads the content of the file with that name. Raises ValueError if it makes no sense."""


def check_record(store: ArtifactStore, kind: RecordKind, key: str, report: StoreReport) -> None:
    """Read one file of the kind, and add it to the report with what is wrong with it."""
    try:
        data = store.read(key)
        if data is not None:
            report.records += 1
            kind.read(key.rpartition("/")[2], data)
    except OSError as error:
        report.problem(Wrong.UNANSWERED, key, error.strerror or str(error))
    except ValueError as error:
        # A secret is not repeated, so the error's own words, which may hold it, are not shown.
        report.problem(Wrong.DAMAGED, key, f"cannot be read ({type(error).__name__})")
