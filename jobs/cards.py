"""Checkpoint cards: how the server learns which models exist without loading one."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

from contract.card import CheckpointCard
from jobs.artifacts import STORAGE_AWAY, ArtifactStore
from jobs.record_kinds import RecordKind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def publish_card(
    store: ArtifactStore, card: CheckpointCard, tokenizer: bytes | None = None, sums: bytes | None = None
) -> None:
    """Publish a checkpoint with its `tokenizer.json` and `SHA256SUMS` to all processes that share the store.

    Raises ValueError for a bad name.
    """
    if not _NAME.fullmatch(card.name):
        raise ValueError(f"checkpoint name {card.name!r}: use 1–64 letters, digits, '.', '_' and '-'")
    if tokenizer is not None:
        store.write(_tokenizer_key(card.name), tokenizer)
    if sums is not None:
        store.write(_sums_key(hashlib.sha256(sums).hexdigest()), sums)
    store.write(f"checkpoints/{card.name}.json", card.model_dump_json().encode())


def _same_sums(digest: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("it has another hash than its name says")


_FILE: Final = re.compile(rf"{_NAME.pattern}\.json")
CARD_RECORDS: Final = (
    RecordKind("checkpoints", _FILE, lambda name, data: CheckpointCard.stored(data)),
    RecordKind("tokenizers", _FILE, lambda name, data: json.loads(data)),
    RecordKind("sums", re.compile(r"[0-9a-f]{64}"), _same_sums),
)


def read_tokenizer(store: ArtifactStore, name: str) -> bytes | None:
    """The `tokenizer.json` of a checkpoint, if it was published."""
    return store.read(_tokenizer_key(name))


def read_sums(store: ArtifactStore, digest: str) -> dict[str, str]:
    """SHA-256 of each file of the checkpoint whose `SHA256SUMS` has this digest; empty if it is not known."""
    lines = (store.read(_sums_key(digest)) or b"").decode(errors="replace").splitlines()
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines) if name}


def _sums_key(digest: str) -> str:
    return f"sums/{digest}"


def _tokenizer_key(name: str) -> str:
    return f"tokenizers/{name}.json"


def read_cards(store: ArtifactStore) -> dict[str, CheckpointCard]:
    """All known checkpoints by name. Raises OSError if storage is away, unless some card can be read."""
    cards = {}
    away: OSError | None = None
    for file in store.list_names("checkpoints"):
        try:
            data = store.read(f"checkpoints/{file}")
            card = CheckpointCard.stored(data) if data is not None else None
        except (ValueError, OSError) as error:  # one that cannot be read must not hide the others
            if isinstance(error, OSError) and error.errno in STORAGE_AWAY:
                away = error
            store.passed_over.note("card", file, error)
            continue
        if card is not None:
            cards[card.name] = card
    if away is not None and not cards:
        raise away
    return cards
