"""What a check of a store finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Wrong(StrEnum):
    """What is wrong with a part of the store."""

    MISSING = "missing"
    """A journal names a file, or must have an entry, that is not there."""
    DAMAGED = "damaged"
    """It has other bytes than a journal says, or cannot be understood."""
    NEWER = "newer"
    """A newer version of this program wrote it."""
    UNANSWERED = "unanswered"
    """The storage gave an error when it was read."""
    LEFTOVER = "leftover"
    """Nothing names it: a worker or an upload died. It takes space."""
    STRAY = "stray"
    """It is not of this program, which leaves it alone."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: Wrong
    key: str
    message: str
    is_problem: bool
    """Whether something is lost or cannot be served. The rest is good to know."""


@dataclass
class StoreReport:
    """What was checked, and what is wrong."""

    jobs: int = 0
    kept_files: int = 0
    records: int = 0
    files: int = 0
    """Files whose hash was compared."""
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not any(finding.is_problem for finding in self.findings)

    def add(self, other: StoreReport) -> None:
        self.jobs += other.jobs
        self.kept_files += other.kept_files
        self.records += other.records
        self.files += other.files
        self.bytes += other.bytes
        self.findings += other.findings

    def problem(self, kind: Wrong, key: str, message: str) -> None:
        self.findings.append(Finding(kind, key, message, is_problem=True))

    def note(self, kind: Wrong, key: str, message: str) -> None:
        self.findings.append(Finding(kind, key, message, is_problem=False))
