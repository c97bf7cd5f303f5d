"""What an uploaded file may be: formats told from the first bytes, limits, and the answer to a bad one.

Imports no codec: the server routes files by it, the sandbox decodes by it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from server.decoding import mpeg

Kind = Literal["image", "audio", "video"]
KIND_OF_FIELD: Final[Mapping[str, Kind]] = {
    "person_image": "image",
    "product_image": "image",
    "audio": "audio",
    "pose_video": "video",
}
Sample = tuple[Kind, bytes]
"""A whole file, and what it is to be taken for."""

ACCEPTED: Final[dict[Kind, dict[str, str]]] = {
    "image": {
        "PNG": "image/png",
        "JPEG": "image/jpeg",
        "WEBP": "image/webp",
        "HEIC": "image/heic",
        "AVIF": "image/avif",
    },
    "audio": {
        "WAV": "audio/wav",
        "FLAC": "audio/flac",
        "OGG": "audio/ogg",
        "MP3": "audio/mpeg",
        "AAC": "audio/aac",
        "AIFF": "audio/aiff",
        "M4A": "audio/mp4",
        "WEBM": "audio/webm",
    },
    "video": {"M4A": "video/mp4", "WEBM": "video/webm"},
}
"""Media type by kind and format. "M4A" is any MP4 or QuickTime file, "WEBM" any Matroska."""
_EXPECTED: Final = {
    "image": "Expected a PNG, JPEG, WebP, HEIC or AVIF image.",
    "audio": "Expected speech in WAV, MP3, FLAC, OGG, M4A, MP4, MOV, WebM, AAC or AIFF.",
    "video": "Expected an MP4 or WebM video.",
}
THREADS: Final = 4
"""Threads of one decoder. Left alone it starts one per core, and each takes a stack of the memory limit."""
_HEAD_BYTES: Final = 512
_MOST_TAGS: Final = 8
_STREAM_BYTES: Final = 8192
"""A recorded stream of MP3 frames begins anywhere; so far it is looked for."""
_MAGIC: Final = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"\x1a\x45\xdf\xa3": "WEBM",
}
RIFF_MAGIC: Final = (b"RIFF", b"RF64", b"BW64")
_QUICKTIME: Final = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""First boxes of QuickTime files older than `ftyp`."""
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_PICTURE_BRANDS: Final = frozenset({b"mif1", b"mif2", b"msf1", b"miaf"})
"""Brands of pictures in an MP4-like file that do not say how they are coded."""


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


def read_at(source: BinaryIO, offset: int, count: int) -> bytes:
    """`count` bytes from `offset`, fewer at the end of the file. Moves no position: processes share it."""
    return os.pread(source.fileno(), count, offset)


def size_of_id3(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins here; 0 if none does."""
    if len(head) < 10 or head[:3] != b"ID3" or any(byte & 0x80 for byte in head[6:10]):
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)  # a footer repeats the header


def _in_mp4(head: bytes) -> str:
    """A picture or sound and video, by the brands in the first box."""
    brands = {head[start : start + 4] for start in range(16, min(len(head), int.from_bytes(head[:4])), 4)}
    major = head[8:12]
    if major in _PICTURE_BRANDS:
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC"
    if major in _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if major in _HEIC_BRANDS else "M4A"


def _is_mpeg(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def sniff(source: BinaryIO) -> str | None:
    """The format of a file by its first bytes: a key of `ACCEPTED`, or None."""
    head = read_at(source, 0, _HEAD_BYTES)
    tagged, position = False, 0
    for _ in range(_MOST_TAGS):
        if not (size := size_of_id3(head)):
            break
        tagged, position = True, position + size
        head = read_at(source, position, _HEAD_BYTES)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if _is_mpeg(head) and head[1] & 0xF6 == 0xF0:  # no layer: not MPEG audio but AAC in ADTS frames
        return "AAC"
    if tagged or (_is_mpeg(head) and head[1] & 0x06):
        return "MP3"
    if head[:4] in RIFF_MAGIC and head[8:12] in (b"WEBP", b"WAVE"):
        return "WEBP" if head[8:12] == b"WEBP" else "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[4:8] == b"ftyp":
        return _in_mp4(head)
    if head[4:8] in _QUICKTIME:
        return "M4A"
    return "MP3" if mpeg.has_frames(read_at(source, 0, _STREAM_BYTES)) else None


def accepted_format(kind: Kind, source: BinaryIO) -> str:
    """The format of a file that is to be of `kind`. Raises RejectedFileError for any other."""
    found = sniff(source)
    if found is None or found not in ACCEPTED[kind]:
        types = ", ".join(ACCEPTED[kind].values())
        raise RejectedFileError("unsupported_media_type", _EXPECTED[kind], types)
    return found
