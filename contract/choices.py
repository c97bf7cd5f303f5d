"""The named choices of a request, as plain enums: the command line lists them without loading pydantic."""

from __future__ import annotations

from enum import StrEnum


class Fit(StrEnum):
    """How a person image of another aspect ratio is brought to the frame. The official code stretches."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class Preset(StrEnum):
    """Which code's behaviour a video follows."""

    EXACT = "exact"
    PARITY = "parity"
    """Repeats the official code's behaviour, defects included; see docs/model.md."""
