"""Named choices of a request and codes of its warnings, as plain enums: listed without loading pydantic."""

from __future__ import annotations

from enum import StrEnum


class Fit(StrEnum):
    """How a person image of another aspect ratio is brought to the frame. The official code stretches."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class Preset(StrEnum):
    """What may differ from the checkpoint's own sampling for the sake of speed; see docs/performance.md."""

    EXACT = "exact"
    """The network computes every step."""
    BALANCED = "balanced"
    """Some steps are interpolated; the video is hard to tell from the exact one."""
    FAST = "fast"
    """More steps are interpolated; details differ from the exact video."""
    DRAFT = "draft"
    """The few steps that the checkpoint was distilled for; only for such checkpoints."""
    PARITY = "parity"
    """Repeats the official code's behaviour, defects included; see docs/model.md."""

    @property
    def is_exact(self) -> bool:
        """Whether the video is what the checkpoint's own sampling gives."""
        return self in (Preset.EXACT, Preset.PARITY)


class WebhookEvent(StrEnum):
    """What a webhook may be told. The names are `job.` and the type of a journal entry."""

    STARTED = "job.started"
    CLIP_FINISHED = "job.clip_finished"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"


class WarningCode(StrEnum):
    """Every code a warning may have; docs/api.md says what they mean and a test keeps the two equal."""

    SPEECH_SILENT = "speech_silent"
    SPEECH_QUIET = "speech_quiet"
    SPEECH_MAYBE_CUT = "speech_maybe_cut"
    FRAMES_DROPPED = "frames_dropped"
    PROMPTS_UNUSED = "prompts_unused"
    PROMPT_CUT = "prompt_cut"
