"""Reading and writing the card of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from contract.card import CARD_FILE, MANIFEST, CheckpointCard
from model.checkpoints.writer import sha256_of


def read_card(folder: str | Path) -> CheckpointCard:
    """The card of a checkpoint folder.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is not JSON, or lacks a field.
    """
    file = Path(folder) / CARD_FILE
    data = file.read_bytes()
    try:
        return CheckpointCard.model_validate_json(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def rewrite_card(card: CheckpointCard, folder: str | Path) -> None:
    """Replace the card of a finished checkpoint folder, and its line in the list of checksums if there is
    one.
    """
    file, manifest = Path(folder) / CARD_FILE, Path(folder) / MANIFEST
    partial = file.with_suffix(".partial")
    partial.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    digest = sha256_of(partial)
    partial.replace(file)
    if manifest.is_file():
        lines = manifest.read_text(encoding="utf-8").splitlines()
        changed = [f"{digest}  {CARD_FILE}" if line.endswith(f"  {CARD_FILE}") else line for line in lines]
        manifest.write_text("\n".join(changed) + "\n", encoding="utf-8")


def write_card(card: CheckpointCard, folder: str | Path) -> None:
    """Write the card into a checkpoint folder."""
    (Path(folder) / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
