"""What an uploaded file may be: formats told from the first bytes, limits, and the answer to a bad one.

Imports no codec: the server routes files by it, the sandbox decodes by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["image", "audio", "video"]

ACCEPTED: Final[dict[Kind, dict[str, str]]] = {
    "image": {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"},
    "audio": {
        "WAV": "audio/wav",
        "FLAC": "audio/flac",
        "OGG": "audio/ogg",
        "MP3": "audio/mpeg",
        "M4A": "audio/mp4",
    },
    "video": {"M4A": "video/mp4", "WEBM": "video/webm"},
}
"""Media type by kind and format. "M4A" is any MP4."""
_EXPECTED: Final = {
    "image": "Expected a PNG, JPEG or WebP image.",
    "audio": "Expected WAV, MP3, FLAC, OGG or M4A speech.",
    "video": "Expected an MP4 or WebM video.",
}
CONTAINERS: Final = frozenset({"M4A", "WEBM"})
"""What only FFmpeg reads (server.decoding.containers); the rest has small libraries of its own."""
HEAD_BYTES: Final = 16


class RejectedFileError(Exception):
    """The file is not acceptable; `code` is one of server.errors."""

    def __init__(self, code: str, detail: str, limit: float | int | str | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.limit = code, detail, limit


def truncated() -> RejectedFileError:
    return RejectedFileError("truncated_file", "The file ends before its content does.")


@dataclass(frozen=True)
class Limits:
    """What a file may be. Pixels are width × height, seconds are of decoded sound."""

    max_pixels: int
    min_side: int
    min_seconds: float
    max_seconds: float
    max_frame_pixels: int


def sniff(head: bytes) -> str | None:
    """The format of a file by its first `HEAD_BYTES`: a key of `ACCEPTED`, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "WAV"
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head.startswith(b"OggS"):
        return "OGG"
    if head[4:8] == b"ftyp":
        return "M4A"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WEBM"
    if head.startswith(b"ID3") or (
        len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06
    ):
        return "MP3"
    return None


def accepted_format(kind: Kind, head: bytes) -> str:
    """The format of a file that is to be of `kind`. Raises RejectedFileError for any other."""
    found = sniff(head)
    if found is None or found not in ACCEPTED[kind]:
        types = ", ".join(ACCEPTED[kind].values())
        raise RejectedFileError("unsupported_media_type", _EXPECTED[kind], types)
    return found
