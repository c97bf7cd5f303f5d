"""WAV files as they are, not as their headers say: where the sound lies, and how it is coded.

Writers that cannot go back leave all sorts of sizes in the header: 0, -1, 2³¹, two thousand million. So a
size is believed only where it fits into the file. Some services send one WAV behind another; each is a part.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from server.decoding.formats import RIFF_MAGIC, RejectedFileError, read_at

_MOST_CHUNKS: Final = 2000
"""Chunks looked at in one file: it is the server itself that looks, to route the file."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_PLAIN: Final = frozenset({(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)})
OPEN_BYTES: Final = 2**30
"""From here on a size that does not fit is a placeholder; a smaller one was true before the file was cut."""
HARMLESS_BYTES: Final = 1024
"""So much behind the last chunk may be anything: a tag, padding, a stray line end."""
_PADDING_BYTES: Final = 65_536
"""So much behind the last chunk may be zeros."""
_IN_DS64: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class WavPart:
    """One RIFF file: bytes `begin` to `end` of the source, of which `start` to `stop` are sound."""

    begin: int
    end: int
    start: int
    stop: int
    tag: int
    bits: int
    channels: int
    rate: int
    frame_bytes: int
    size_is_open: bool
    """The header's size says nothing: the sound goes on to the end of the file."""
    missing_bytes: int
    """Sound that the header announces and that is not there."""

    @property
    def is_plain(self) -> bool:
        """Mono or stereo PCM, which needs no codec."""
        return (
            (self.tag, self.bits) in _PLAIN
            and self.channels in (1, 2)
            and self.frame_bytes == self.channels * self.bits // 8
        )

    def blocks(self, source: BinaryIO, frames: int) -> Iterator[bytes]:
        """The sound of a plain part, `frames` sample frames at a time."""
        source.seek(self.start)
        left = (self.stop - self.start) // self.frame_bytes * self.frame_bytes
        while left > 0 and (block := source.read(min(left, frames * self.frame_bytes))):
            left -= len(block)
            yield block


class _Reader:
    """Goes through the chunks of a file."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._left = source, _MOST_CHUNKS
        self.size = os.fstat(source.fileno()).st_size

    def at(self, position: int, count: int) -> bytes:
        return read_at(self._source, position, count)

    def is_riff(self, position: int) -> bool:
        head = self.at(position, 12)
        return head[:4] in RIFF_MAGIC and head[8:] == b"WAVE"

    def chunk(self, position: int) -> tuple[bytes, int] | None:
        """Name and size of the chunk here; None if there is none, or too many were asked for."""
        self._left -= 1
        head = self.at(position, 8)
        if self._left < 0 or len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
            return None
        return head[:4], struct.unpack("<I", head[4:])[0]

    def end_of_chunks(self, stop: int) -> int:
        """Where the chunks behind the sound end: at the end of the file, the next file, or something else."""
        position = stop
        while position < self.size and not self.is_riff(position):
            chunk = self.chunk(position)
            if chunk is None or position + 8 + chunk[1] > self.size:
                # Sound of odd length is padded, but not by everybody.
                if position > stop or stop % 2 == 0:
                    break
                position += 1
                stop = position
            else:
                position += 8 + chunk[1] + chunk[1] % 2
        return min(position, self.size)


def _part(file: _Reader, begin: int) -> WavPart | None:
    """The RIFF file that begins here; None without a format or sound that can be found."""
    form, long_size, position = b"", 0, begin + 12
    while (chunk := file.chunk(position)) is not None:
        name, length = chunk
        start = position + 8
        if name == b"fmt ":
            form = form or file.at(start, min(length, 40))
        elif name == b"ds64":
            long_size = int.from_bytes(file.at(start + 8, 8), "little")
        elif name == b"data":
            if length == _IN_DS64 and long_size:
                length = long_size
            return _with_sound(file, begin, start, length, form)
        position = start + length + length % 2
    return None


def _with_sound(file: _Reader, begin: int, start: int, length: int, form: bytes) -> WavPart | None:
    if len(form) < 16:
        return None
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", form)
    if tag == _EXTENSIBLE and len(form) >= 26:
        tag = struct.unpack_from("<H", form, 24)[0]
    is_open = length == 0 or start + length > file.size
    stop = file.size if is_open else start + length
    return WavPart(
        begin=begin,
        end=file.end_of_chunks(stop),
        start=start,
        stop=stop,
        tag=tag,
        bits=bits,
        channels=channels,
        rate=rate,
        frame_bytes=frame_bytes,
        size_is_open=is_open,
        missing_bytes=start + length - file.size if is_open and 0 < length < OPEN_BYTES else 0,
    )


def _is_harmless(file: _Reader, position: int) -> bool:
    length = file.size - position
    rest = file.at(position, _PADDING_BYTES)
    zeros = length <= _PADDING_BYTES and not rest.strip(b"\0")
    return length <= HARMLESS_BYTES or rest[:3] in (b"TAG", b"ID3") or zeros


def read_parts(source: BinaryIO) -> list[WavPart]:
    """The WAV files in this file, one behind the other; empty if the first has no sound that can be found.

    Raises:
        RejectedFileError: behind the sound follows a lot that is neither a chunk nor another WAV.
    """
    file, parts, position = _Reader(source), list[WavPart](), 0
    while position < file.size and file.is_riff(position) and (part := _part(file, position)) is not None:
        parts.append(part)
        position = part.end
    if parts and not _is_harmless(file, position):
        raise RejectedFileError(
            "undecodable_file",
            f"The header ends the sound {file.size - position} bytes before the end of the file, and what "
            "follows is no WAV. Write the file anew with the right size in its header.",
        )
    return parts


def is_plain(source: BinaryIO) -> bool:
    """Whether a WAV holds nothing but mono or stereo PCM."""
    try:
        parts = read_parts(source)
    except RejectedFileError:
        return True  # the decoder says so again, to whom it concerns
    return bool(parts) and all(part.is_plain for part in parts)
