"""Whether a file is all there. Decoders forgive a missing end; we do not, because what is missing cannot be
known.

Ogg pages, MP4 boxes and Matroska elements say where they end; so does the chunk grammar of WAV
(server.decoding.riff). MP3, ADTS and FLAC are frames to the end of the file: `server.decoding.sound` sees
which of them could be read.
"""

from __future__ import annotations

import mmap
import re
import struct
from typing import Final

from server.decoding.formats import RejectedFileError, size_of_id3, truncated
from server.decoding.riff import HARMLESS_BYTES, OPEN_BYTES

_MOST_LINKS: Final = 100
_LAST_PAGE, _FIRST_PAGE, _CONTINUED = 4, 2, 255
TAGS: Final = (b"ID3", b"TAG", b"APETAGEX")
"""How tags in MP3 begin."""
_NOT_ZERO: Final = re.compile(rb"[^\0]")
_EBML_HEAD: Final = b"\x1a\x45\xdf\xa3"
_SEGMENT: Final = b"\x18\x53\x80\x67"
_WEBM: Final = re.compile(rb"\x1a\x45\xdf\xa3(?=.{0,58}\x42\x82)", re.DOTALL)
"""The head of a Matroska file, which names its document type."""


def check_mp4(data: mmap.mmap) -> None:
    """Every top-level box of an MP4 is whole, and the index (moov) is there. Raises RejectedFileError."""
    position, seen = 0, set[bytes]()
    while position + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        if size == 1 and position + 16 <= len(data):
            size = struct.unpack(">Q", data[position + 8 : position + 16])[0]
        elif size == 0:
            size = len(data) - position
        if size < 8:
            if b"moov" in seen and b"mdat" in seen:
                break  # some apps write things of their own behind
            raise RejectedFileError("undecodable_file", "The MP4 container is damaged.")
        if position + size > len(data):
            raise truncated()
        if name == b"moov" and name in seen:
            raise RejectedFileError(
                "undecodable_file",
                "Several MP4 files were joined byte by byte; only the first could be read.",
            )
        seen.add(name)
        position += size
    if b"moov" not in seen:
        raise truncated()


def check_aiff(data: mmap.mmap) -> int:
    """Bytes of sound that an AIFF announces and does not have. Raises RejectedFileError if a lot follows that
    does not belong to it.
    """
    end = 8 + int.from_bytes(data[4:8])
    if 12 < end < len(data) - HARMLESS_BYTES and data[end:].strip(b"\0"):
        raise RejectedFileError(
            "undecodable_file",
            f"The header ends the sound {len(data) - end} bytes before the end of the file. Write the file "
            "anew with the right size in its header.",
        )
    return end - len(data) if len(data) < end < OPEN_BYTES else 0


def _ebml_size(data: mmap.mmap, position: int) -> tuple[int | None, int]:
    """The size that is coded here, None if it is left open, and where the content begins."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    if length > 8:
        raise RejectedFileError("undecodable_file", "The WebM container is damaged.")
    ones = (1 << 7 * length) - 1
    value = int.from_bytes(data[position : position + length]) & ones
    return (None if value == ones else value), position + length


def _next_webm(data: mmap.mmap, position: int) -> int:
    """Where the next Matroska file begins behind one that does not say how long it is."""
    found = _WEBM.search(data, position)
    return found.start() if found else len(data)


def webm_links(data: mmap.mmap) -> list[tuple[int, int]]:
    """Where each of the Matroska files begins and ends, one behind the other. They are whole, if they say how
    long they are: recorders leave that open. Raises RejectedFileError.
    """
    damaged = RejectedFileError("undecodable_file", "The WebM container is damaged.")
    begin, links = 0, list[tuple[int, int]]()
    while data[begin : begin + 4] == _EBML_HEAD:
        size, position = _ebml_size(data, begin + 4)
        if size is None or position + size + 4 > len(data):
            raise damaged
        position += size
        if data[position : position + 4] != _SEGMENT or len(links) == _MOST_LINKS:
            raise damaged
        size, position = _ebml_size(data, position + 4)
        end = _next_webm(data, position) if size is None else position + size
        if end > len(data):
            raise truncated()
        links.append((begin, end))
        begin = end
    if len(data) - begin > HARMLESS_BYTES and data[begin:].strip(b"\0"):
        raise truncated()
    return links


def ogg_links(data: mmap.mmap) -> tuple[list[tuple[int, int]], bool]:
    """Where each of the Ogg streams in a file begins and ends, one behind the other (a chain), and whether
    the last page is marked as such. Raises RejectedFileError.
    """
    begins, position = [0], 0
    in_heads, flags, last_lace = True, 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            following = data.find(b"OggS", position)
            if following < 0:
                if data[position:].strip(b"\0") and len(data) - position > HARMLESS_BYTES:
                    raise truncated()
                break
            position = following  # what lies between is as lost to every other reader
        laces = data[
            position + 27 : position + 27 + (data[position + 26] if position + 26 < len(data) else 1)
        ]
        end = position + 27 + len(laces) + sum(laces)
        if position + 27 > len(data) or len(laces) < data[position + 26] or end > len(data):
            raise truncated()
        flags, last_lace = data[position + 5], laces[-1] if laces else 0
        if flags & _FIRST_PAGE and not in_heads:
            begins.append(position)
        in_heads = bool(flags & _FIRST_PAGE)
        if len(begins) > _MOST_LINKS:
            raise RejectedFileError("undecodable_file", "The Ogg file is a chain of too many.", _MOST_LINKS)
        position = end
    if last_lace == _CONTINUED:
        raise truncated()
    return list(zip(begins, [*begins[1:], len(data)], strict=True)), bool(flags & _LAST_PAGE)


def end_of_tags(data: mmap.mmap, position: int) -> int:
    """Where the tags that begin here end: ID3, APE and padding, which say nothing that can be heard."""
    while position < len(data):
        head = data[position : position + 32]
        if head.startswith(b"TAG"):
            length = 128
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            # The size counts a footer, not a header; either may be what stands here.
            length = 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
        elif head[0] == 0:
            heard = _NOT_ZERO.search(data, position)
            length = (heard.start() if heard else len(data)) - position
        else:
            length = size_of_id3(head)
        if length == 0:
            break
        position += length
    return min(position, len(data))


def mp3_frames_announced(data: mmap.mmap) -> int | None:
    """Frames that the file should have by its Xing or Info header, None without one."""
    begin = end_of_tags(data, 0)
    for name in (b"Xing", b"Info"):
        found = data.find(name, begin, begin + 64)
        if found > 0 and data[found + 7] & 1:
            return int.from_bytes(data[found + 8 : found + 12])
    return None
