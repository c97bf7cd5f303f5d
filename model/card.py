"""`cointeract.json`, the card of a checkpoint folder: what others must know about a model without loading it.

Torch-free to read. The service reads the same file through its own contract.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

CARD_FILE = "cointeract.json"


@dataclass(frozen=True)
class CardDefaults:
    """Sampling settings that a request leaves open."""

    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    negative_prompt: str


@dataclass(frozen=True)
class CheckpointCard:
    """What a checkpoint is, and what it was made for."""

    name: str
    trained: bool
    sizes: tuple[str, ...]
    """Recommended "WIDTHxHEIGHT", multiples of 16; the first is the default."""
    min_side: int
    max_pixels: int
    defaults: CardDefaults
    pose: bool
    license: str
    frames_per_clip: int = 80
    fps: int = 25
    sources: dict[str, str] = field(default_factory=dict)
    """What it was made from."""
    note: str = ""
    """What whoever sees its videos should know, in a sentence: shown beside them."""

    def write(self, folder: str | Path) -> None:
        """Write the card into a checkpoint folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (Path(folder) / CARD_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> CheckpointCard:
        """Read the card of a checkpoint folder.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is not JSON, or lacks a field.
        """
        text = (Path(folder) / CARD_FILE).read_text(encoding="utf-8")
        try:
            values = json.loads(text)
            defaults = CardDefaults(**values.pop("defaults"))
            values["sizes"] = tuple(values["sizes"])
            return cls(defaults=defaults, **values)
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{Path(folder) / CARD_FILE}: {error}") from error
