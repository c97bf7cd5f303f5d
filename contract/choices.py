"""Named choices of a request and codes of its warnings, as plain enums: listed without loading pydantic."""

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


class WarningCode(StrEnum):
    """Every code a warning may have; docs/api.md says what they mean and a test keeps the two equal."""

    SPEECH_SILENT = "speech_silent"
    SPEECH_QUIET = "speech_quiet"
    SPEECH_MAYBE_CUT = "speech_maybe_cut"
    FRAMES_DROPPED = "frames_dropped"
    PROMPTS_UNUSED = "prompts_unused"
    PROMPT_CUT = "prompt_cut"
