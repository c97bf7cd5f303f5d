"""The grammar of JPEG: where a picture ends, and how much work it is.

Telephones put a second picture or a film behind the first, where the last marker of the file is no help. And
a progressive JPEG may come in as many scans as it likes, each a pass over all pixels for a dozen bytes.
"""

from __future__ import annotations

import mmap
import re
from typing import Final

from server.decoding.formats import RejectedFileError, truncated

_AFTER_SCAN: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
"""A marker that ends coded data: not a stuffed byte, a restart or a filler."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_MOST_SCANS: Final = 200
_MOST_SCANNED_PIXELS: Final = 2 * 10**9
"""Scans × pixels: some two seconds of work."""


def count_scans(data: mmap.mmap) -> int:
    """The scans of the first picture. Raises RejectedFileError if it does not end."""
    position, scans = 2, 0
    while True:
        position = data.find(b"\xff", position)
        while 0 <= position < len(data) - 1 and data[position + 1] == 0xFF:
            position += 1
        if not 0 <= position < len(data) - 1:
            raise truncated()
        marker = data[position + 1]
        if marker == _END:
            if not scans:
                raise truncated()
            return scans
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        position += 2 + length
        if position > len(data):
            raise truncated()
        if marker == _START_OF_SCAN:
            scans += 1
            if (found := _AFTER_SCAN.search(data, position)) is None:
                raise truncated()
            position = found.start()


def check_scans(scans: int, pixels: int) -> None:
    """Raises RejectedFileError if so many scans over so many pixels are no photo but an attack."""
    if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED_PIXELS:
        most = max(1, min(_MOST_SCANS, _MOST_SCANNED_PIXELS // pixels))
        raise RejectedFileError("image_too_large", f"The JPEG image comes in {scans} scans.", most)
