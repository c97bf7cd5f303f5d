"""GPU time that no job shows any more (`jobs.usage`): deleting or canceling a job gives no quota back.

It lies in one small file each. A process reads it once and keeps sums by owner and minute, so that a
submit adds up numbers in memory, however many jobs were deleted. After a day the files go.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from contract.job import utcnow
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.usage import USAGE_FOLDER, USAGE_NAME, SpentUsage, note_usage

DAY: Final = timedelta(days=1)
_MINUTE_S: Final = 60
_REST: Final = 20
"""So many times as long as a look at the folder took, it is not looked at again."""


@dataclass
class UsageLedger:
    """What deleted jobs have cost. The index holds its lock around what changes sums; what reads or writes
    files needs none.
    """

    store: ArtifactStore
    _known: set[str] = field(default_factory=set)
    """Files that have been counted, or that cannot be."""
    _sums: dict[str, dict[int, float]] = field(default_factory=dict)
    """GPU seconds by owner and minute."""
    _next_look: float = 0.0

    # Files, without the lock

    def write(self, job: Job, at: datetime) -> dict[str, SpentUsage]:
        """Note down a job that is about to be deleted and used the GPU last at that time; for `take`."""
        if job.gpu_seconds <= 0:
            return {}
        usage = SpentUsage(owner=job.submitted.owner, gpu_seconds=job.gpu_seconds, at=at)
        return {note_usage(self.store, usage, job.id): usage}

    def unread(self) -> dict[str, SpentUsage]:
        """What other processes have written; for `take`."""
        started = time.monotonic()
        if started < self._next_look:
            return {}
        found = {}
        for name in self.store.list_names(USAGE_FOLDER):
            if name not in self._known and (usage := self._read(name)) is not None:
                found[name] = usage
        now = time.monotonic()
        self._next_look = now + _REST * (now - started)
        return found

    def remove_old(self, now: float) -> set[str]:
        """Remove files older than a day at `now`, by the storage's own stamps; for `forget`."""
        gone = set()
        for name in self.store.list_names(USAGE_FOLDER):
            key = f"{USAGE_FOLDER}/{name}"
            if USAGE_NAME.fullmatch(name) and (self.store.written_at(key) or now) < now - DAY.total_seconds():
                self.store.remove(key)
                gone.add(name)
        return gone

    # Sums, under the lock

    def take(self, found: dict[str, SpentUsage]) -> None:
        for name, usage in found.items():
            if name not in self._known:
                self._known.add(name)
                sums = self._sums.setdefault(usage.owner, {})
                minute = int(usage.at.timestamp() // _MINUTE_S)
                sums[minute] = sums.get(minute, 0.0) + usage.gpu_seconds

    def forget(self, gone: set[str]) -> None:
        """Files that were removed, and the sums of more than a day ago."""
        self._known -= gone
        oldest = (utcnow() - DAY).timestamp() // _MINUTE_S
        for owner, sums in list(self._sums.items()):
            self._sums[owner] = {minute: spent for minute, spent in sums.items() if minute > oldest}
            if not self._sums[owner]:
                del self._sums[owner]

    def spent(self, owner: str) -> float:
        """GPU seconds of the last day."""
        since = (utcnow() - DAY).timestamp() // _MINUTE_S
        sums = self._sums.get(owner, {})
        return sum(seconds for minute, seconds in sums.items() if minute > since)

    def _read(self, name: str) -> SpentUsage | None:
        key = f"{USAGE_FOLDER}/{name}"
        if not USAGE_NAME.fullmatch(name):
            self.store.passed_over.note("stray", key, "not the name of a job")
            return None
        try:
            data = self.store.read(key)
            return None if data is None else SpentUsage.stored(data)
        except (ValueError, OSError) as error:
            self.store.passed_over.note("usage", name, error)
            return None
