"""Frames of MPEG audio (MP1 to MP3) by their headers: a recorded stream begins anywhere among them."""

from __future__ import annotations

from typing import Final

_BITRATES: Final = {
    # kbit/s by (MPEG-1, layer) and index
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_FRAMES_IN_A_ROW: Final = 3


def frame_bytes(header: bytes) -> int:
    """Length of the frame with this header of four bytes; 0 if it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or not 1 <= bitrate <= 14 or rate == 3:
        return 0
    bits = _BITRATES[version == 3, layer][bitrate - 1] * 1000
    hertz = _RATES[version][rate]
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding


def has_frames(data: bytes) -> bool:
    """Whether somewhere in `data` several frames follow one another."""
    begin = data.find(b"\xff")
    while begin >= 0:
        position = begin
        for _ in range(_FRAMES_IN_A_ROW):
            length = frame_bytes(data[position : position + 4])
            if not length:
                break
            position += length
        else:
            return True
        begin = data.find(b"\xff", begin + 1)
    return False
