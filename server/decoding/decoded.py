"""What became of a file: the answer of a decoder, in the sandbox or in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.settings import Settings
from contract.video import SpeechLength
from contract.warnings import JobWarning
from server.decoding.decoders import decode, libraries_for, load_decoders
from server.decoding.formats import KIND_OF_FIELD, Limits


def limits_of(settings: Settings) -> Limits:
    """What this server accepts."""
    return Limits(
        max_pixels=settings.max_image_pixels,
        min_side=settings.min_image_side,
        min_seconds=settings.min_audio_seconds,
        max_seconds=settings.max_audio_seconds,
        max_frame_pixels=settings.max_video_pixels,
    )


@dataclass(frozen=True)
class DecodedFile:
    """What a decoder found out. Sizes in pixels, samples per channel at `rate` Hz."""

    format: str
    width: int = 0
    height: int = 0
    rate: int = 0
    samples: int = 0
    seconds: float = 0.0
    frames: int = 0
    warnings: tuple[JobWarning, ...] = ()

    @classmethod
    def of(cls, answer: Mapping[str, Any], field: str) -> DecodedFile:
        """What a decoder answered about the file of a field."""
        told = {name: value for name, value in answer.items() if name != "warnings"}
        notes = answer.get("warnings", ())
        warnings = tuple(JobWarning(code=code, message=text, field=field) for code, text in notes)
        return cls(**told, warnings=warnings)

    @property
    def speech_length(self) -> SpeechLength:
        return SpeechLength(self.samples, self.rate)


def decode_here(field: str, source: Path, target: Path, limits: Limits) -> DecodedFile:
    """Decode a file of one's own in this process: the same pixels and samples as a server makes. Raises
    RejectedFileError, FileNotFoundError.
    """
    with source.open("rb") as file, target.open("w+b") as decoded:
        decoders, _ = load_decoders(libraries_for(file))
        return DecodedFile.of(decode(decoders, file, decoded, KIND_OF_FIELD[field], limits), field)
