"""Idempotency-Key: the same key and request lead to the same job, whoever crashes in between.

A claim maps a key to a job id and a fingerprint of the request. It is created exclusively, before the job,
so two submits with one key agree on one job id. A claim without a job means that a submit crashed in between:
the next one with that key stores the job under the id of the claim. When a job is deleted or expires, a mark
beside its claim says so, and a submit with that key is refused.
A claim that cannot be read counts as none: another takes its place beside it, because whoever removed it
could remove that of a submit that was faster.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from contract.frozen import Frozen
from contract.job import utcnow
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.journal import gone_key
from jobs.record_kinds import RecordKind
from server.errors import ApiError
from server.keyed_locks import KeyedLocks

KEPT: Final = timedelta(hours=48)
LONGEST_KEY: Final = 255
_FOLDER: Final = "idempotency"
_NAME: Final = re.compile(r"(?P<key>[0-9a-f]{64})(\.\d+)?\.(claim|gone)")


class Claim(Frozen):
    job_id: str
    fingerprint: str
    at: datetime


CLAIM_RECORDS: Final = RecordKind(
    _FOLDER, _NAME, lambda name, data: name.endswith(".gone") or Claim.stored(data)
)


def fingerprint(settings: Mapping[str, object], files: Mapping[str, str]) -> str:
    """A hash of the settings as given and of the files. The order of the fields makes no difference."""
    canonical = json.dumps([settings, files], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def checked_key(value: str | None) -> str | None:
    """The header's value. Raises ApiError if it is empty, too long or not printable ASCII."""
    if value is None:
        return None
    if not 1 <= len(value) <= LONGEST_KEY or not (value.isascii() and value.isprintable()):
        raise ApiError(
            "invalid_value",
            "An Idempotency-Key has 1 to 255 printable ASCII characters.",
            field="Idempotency-Key",
            limit=LONGEST_KEY,
        )
    return value


@dataclass
class IdempotencyKeys:
    """Claims in a store."""

    store: ArtifactStore
    _locks: KeyedLocks = field(default_factory=KeyedLocks)

    @staticmethod
    def _path(owner: str, key: str) -> str:
        name = hashlib.sha256(f"{owner}/{key}".encode()).hexdigest()  # an owner's id has no slash
        return f"{_FOLDER}/{name}"

    def known(self, owner: str, key: str) -> bool:
        return self._slot(owner, key)[1] is not None

    def _slot(self, owner: str, key: str) -> tuple[str, Claim | None]:
        """The place of the key's claim in the store, and the claim if there is one."""
        for number in count():
            path = f"{self._path(owner, key)}{f'.{number}' if number else ''}.claim"
            try:
                data = self.store.read(path)
                return path, None if data is None else Claim.stored(data)
            except (ValueError, NoFileOfOurs) as error:
                self.store.passed_over.note("claim", path, f"cannot be read: {type(error).__name__}")
        raise AssertionError("counting has no end")

    def claim(self, owner: str, key: str, request: str, job_id: str) -> str:
        """The id of this request's job: `job_id`, or the id that the first submit with this key claimed.

        Raises ApiError if the key was used for another request.
        """
        path, claim = self._slot(owner, key)
        if claim is None:
            wanted = Claim(job_id=job_id, fingerprint=request, at=utcnow())
            # Not durable yet: the claim becomes durable with its job, without which it is worth nothing.
            if self.store.create(path, wanted.model_dump_json().encode(), durable=False):
                return job_id
            path, claim = self._slot(owner, key)
        if claim is None:
            raise ApiError("busy", "The idempotency key has just expired; try again.", retry_after_s=1)
        if claim.fingerprint != request:
            detail = "This Idempotency-Key was used for another request; use a new one."
            raise ApiError("idempotency_key_reused", detail, field="Idempotency-Key")
        return claim.job_id

    def claim_key(self, owner: str, key: str) -> str:
        """The claim's key in the store."""
        return self._slot(owner, key)[0]

    def is_gone(self, owner: str, key: str) -> bool:
        """Whether the job of the key was deleted or has expired."""
        return self.store.exists(gone_key(self.claim_key(owner, key)))

    def expire(self, now: float) -> None:
        """Forget claims older than `KEPT` at `now`, by the storage's own stamps."""
        files: dict[str, list[str]] = defaultdict(list)
        for name in self.store.list_names(_FOLDER):
            path = f"{_FOLDER}/{name}"
            if match := _NAME.fullmatch(name):
                files[match["key"]].append(path)
            else:
                self.store.passed_over.note("stray", path, "no claim of ours")
        for paths in files.values():
            claims = [path for path in paths if path.endswith(".claim")]
            # A mark without a claim is what a process left that died while it removed both.
            newest = max((self.store.written_at(path) or now for path in claims), default=0.0)
            if newest < now - KEPT.total_seconds():
                for path in paths:
                    self.store.remove(path)

    def turn(self, owner: str, key: str) -> AbstractAsyncContextManager[None]:
        """Let one submit per key work at a time, so that no other repeats the work of the first."""
        return self._locks.turn(self._path(owner, key))
