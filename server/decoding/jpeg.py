"""The grammar of JPEG: where a picture ends, and how much work it is.

Telephones put a second picture or a film behind the first, where the last marker of the file is no help. And
a progressive JPEG may come in as many scans as it likes, each a pass over all pixels for a dozen bytes.
"""

from __future__ import annotations

import mmap
import re
from typing import Final

from server.decoding.formats import RejectedFileError, truncated

_NOT_FILLER: Final = re.compile(rb"[^\xff]", re.DOTALL)
_AFTER_SCAN: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
"""A marker that ends coded data: not a stuffed byte, a restart or a filler."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH: Final = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_MOST_SEGMENTS: Final = 100_000
_MOST_SCANS: Final = 200
_MOST_SCANNED_PIXELS: Final = 2 * 10**9
"""Scans × pixels: some two seconds of work."""


def count_scans(data: mmap.mmap) -> int:
    """The scans of the first picture. Raises RejectedFileError if it does not end."""
    position, scans = 2, 0
    for _ in range(_MOST_SEGMENTS):
        begin = data.find(b"\xff", position)
        # Any number of 0xFF may stand before the byte that makes the marker.
        if begin < 0 or (found := _NOT_FILLER.search(data, begin)) is None:
            raise truncated()
        marker, position = found[0][0], found.end()
        if marker == _END and scans:
            return scans
        if marker in _WITHOUT_LENGTH:
            continue
        position += max(2, int.from_bytes(data[position : position + 2]))
        if position > len(data):
            raise truncated()
        if marker == _START_OF_SCAN:
            scans += 1
            if (found := _AFTER_SCAN.search(data, position)) is None:
                raise truncated()
            position = found.start()
    raise RejectedFileError("undecodable_file", "The JPEG image has too many segments.", _MOST_SEGMENTS)


def check_scans(scans: int, pixels: int) -> None:
    """Raises RejectedFileError if so many scans over so many pixels are no photo but an attack."""
    if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED_PIXELS:
        most = max(1, min(_MOST_SCANS, _MOST_SCANNED_PIXELS // pixels))
        raise RejectedFileError("image_too_large", f"The JPEG image comes in {scans} scans.", most)
