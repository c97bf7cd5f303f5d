"""API keys: the command line creates, lists and revokes them, the server checks them.

A key is `ck_<id>_<secret>`, of which only a hash is stored. The secret has 256 random bits, so nobody can
search for it by its SHA-256, and the hash needs no salt.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from contract.frozen import Frozen
from contract.job import Priority, utcnow
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.record_kinds import RecordKind

_FOLDER: Final = "keys"
_KEY: Final = re.compile(r"ck_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
ANONYMOUS_OWNER: Final = "local"
"""The owner of jobs that were submitted without a key."""

_ID: Final = re.compile(r"[a-z0-9]{12}")
_FILE: Final = re.compile(rf"{_ID.pattern}\.json")


class Scope(StrEnum):
    """What a key may do. An admin may do everything, with everybody's jobs."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


class KeyLimits(Frozen):
    """The limits of one key. None means no limit."""

    max_queued: int | None = None
    max_running: int | None = None
    gpu_seconds_per_day: float | None = None
    max_stored_bytes: int | None = None

    @property
    def are_reserved(self) -> bool:
        """Whether unfinished jobs count with the use that is expected of them."""
        return self.gpu_seconds_per_day is not None or self.max_stored_bytes is not None


class ApiKey(Frozen):
    """A key as stored. `id` is public; it is the `owner` of the jobs that the key submits."""

    id: str
    name: str
    secret_sha256: str
    scopes: tuple[Scope, ...]
    highest_priority: Priority = Priority.NORMAL
    limits: KeyLimits = KeyLimits()
    created_at: datetime
    revoked_at: datetime | None = None


KEY_RECORDS: Final = RecordKind(_FOLDER, _FILE, lambda name, data: ApiKey.model_validate_json(data))


@dataclass(frozen=True)
class NewKey:
    """A key just created. `token` is shown once and never again."""

    key: ApiKey
    token: str


def _path(key_id: str) -> str:
    return f"{_FOLDER}/{key_id}.json"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _names(store: ArtifactStore) -> list[str]:
    """Files of keys, readable or not. What else lies in the folder is passed over, and locks nobody out."""
    found = []
    for name in store.list_names(_FOLDER):
        if _FILE.fullmatch(name):
            found.append(name)
        else:
            store.passed_over.note("stray", f"{_FOLDER}/{name}", "not the name of a key")
    return found


def _read(store: ArtifactStore, key_id: str) -> ApiKey | None:
    """The key, if it is stored and can be read. One with an unknown field, which may restrict it, cannot."""
    try:
        data = store.read(_path(key_id))
        return None if data is None else ApiKey.model_validate_json(data)
    except (ValueError, NoFileOfOurs):
        store.passed_over.note("key", key_id, "cannot be read, so it is not valid")
        return None


def create_key(
    store: ArtifactStore,
    name: str,
    scopes: Sequence[Scope] = (Scope.SUBMIT, Scope.READ),
    limits: KeyLimits | None = None,
    highest_priority: Priority = Priority.NORMAL,
) -> NewKey:
    """Create and store a key.

    Raises ValueError if there is no scope, or if the name is not one line of 1 to 100 characters.
    """
    if not scopes:
        raise ValueError("a key needs at least one scope")
    if not name.isprintable() or not 1 <= len(name) <= 100:
        raise ValueError("the name of a key has 1 to 100 printable characters")
    key_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(12))
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id,
        name=name,
        secret_sha256=_hash(secret),
        scopes=tuple(scopes),
        highest_priority=highest_priority,
        limits=limits or KeyLimits(),
        created_at=utcnow(),
    )
    store.write(_path(key_id), key.model_dump_json().encode())
    return NewKey(key, f"ck_{key_id}_{secret}")


def list_keys(store: ArtifactStore) -> list[ApiKey]:
    """All keys, revoked ones included, oldest first."""
    found = (_read(store, name.removesuffix(".json")) for name in _names(store))
    return sorted((key for key in found if key is not None), key=lambda key: key.created_at)


def revoke_key(store: ArtifactStore, key_id: str) -> bool:
    """Make a key invalid from now on. Its jobs stay. False if there is no such key, or it was revoked."""
    key = _read(store, key_id) if _ID.fullmatch(key_id) else None
    if key is None:
        return False
    if key.revoked_at is not None:
        return False
    store.write(_path(key_id), key.model_copy(update={"revoked_at": utcnow()}).model_dump_json().encode())
    return True


def is_revoked(store: ArtifactStore, key_id: str) -> bool:
    """Whether a key was valid once and is not any more."""
    data = store.read(_path(key_id)) if _ID.fullmatch(key_id) else None
    return data is not None and ApiKey.model_validate_json(data).revoked_at is not None


def any_keys(store: ArtifactStore) -> bool:
    """Whether the server asks for keys: from the first key on it does, even if all keys are revoked."""
    return bool(_names(store))


def authenticate(store: ArtifactStore, token: str) -> ApiKey | None:
    """The key that `token` stands for, or None if there is no valid one."""
    match = _KEY.fullmatch(token)
    if match is None:
        return None
    key = _read(store, match[1])
    if key is None:
        return None
    if not hmac.compare_digest(key.secret_sha256, _hash(match[2])) or key.revoked_at is not None:
        return None
    return key
