"""Reading and writing the card of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from contract.card import CARD_FILE, CheckpointCard


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


def write_card(card: CheckpointCard, folder: str | Path) -> None:
    """Write the card into a checkpoint folder."""
    (Path(folder) / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
