"""The limits for a file on this server, and a decoder's answer about it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from contract.settings import Settings
from contract.video import SpeechLength
from contract.warnings import JobWarning
from server.decoding.formats import Limits


def limits_of(settings: Settings) -> Limits:
    """The limits of this server."""
    return Limits(
        max_pixels=settings.max_image_pixels,
        min_side=settings.min_image_side,
        min_seconds=settings.min_audio_seconds,
        max_seconds=settings.max_audio_seconds,
        max_frame_pixels=settings.max_video_pixels,
    )


@dataclass(frozen=True)
class DecodedFile:
    """A decoder's answer about a file. Sizes are in pixels, samples per channel at `rate` Hz."""

    format: str
    width: int = 0
    height: int = 0
    rate: int = 0
    samples: int = 0
    seconds: float = 0.0
    frames: int = 0
    warnings: tuple[JobWarning, ...] = ()
    thumbnail: bytes = b""
    """For an image: a small JPEG of it."""

    @classmethod
    def of(cls, answer: Mapping[str, Any], field: str) -> DecodedFile:
        """The decoder's answer about the file of a field."""
        told = {name: value for name, value in answer.items() if name not in ("warnings", "thumbnail")}
        notes = answer.get("warnings", ())
        warnings = tuple(JobWarning(code=code, message=text, field=field) for code, text in notes)
        thumbnail = base64.b64decode(answer.get("thumbnail", ""))
        return cls(**told, warnings=warnings, thumbnail=thumbnail)

    def as_answer(self) -> dict[str, Any]:
        """The answer of a decoder that `of` would turn into this, for any field."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        warnings = [(warning.code, warning.message) for warning in self.warnings]
        thumbnail = base64.b64encode(self.thumbnail).decode()
        return {**told, "warnings": warnings, "thumbnail": thumbnail}

    @property
    def speech_length(self) -> SpeechLength:
        return SpeechLength(self.samples, self.rate)
