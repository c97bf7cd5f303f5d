"""Tiny files of each format, made on the spot: a decoding process loads its codecs by decoding them."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image

from server.decoding.formats import Kind

Sample = tuple[Kind, bytes]


def _image(kind: str, mode: str, turned: bool = False) -> Sample:
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6  # orientation
    buffer = io.BytesIO()
    Image.new(mode, (32, 32)).save(buffer, kind, exif=exif)
    return "image", buffer.getvalue()


def _sound(kind: str, subtype: str | None, rate: int, channels: int) -> Sample:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((4000, channels), np.float32), rate, format=kind, subtype=subtype)
    return "audio", buffer.getvalue()


def usual_samples() -> list[Sample]:
    """What most requests hold."""
    return [_image("PNG", "RGB"), _sound("WAV", "PCM_16", 16_000, 1)]


def all_samples() -> list[Sample]:
    """One of each format and way of decoding, but for containers."""
    modes = (("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("JPEG", "CMYK"))
    images = [_image(kind, mode) for kind, mode in modes]
    sounds = [
        _sound(kind, subtype, rate, 2)
        for kind, subtype, rate in (
            ("WAV", "FLOAT", 96_000),
            ("FLAC", "PCM_16", 8000),
            ("OGG", "VORBIS", 8000),
            ("OGG", "OPUS", 8000),
            ("MP3", None, 8000),
        )
    ]
    return [*usual_samples(), *images, _image("JPEG", "RGB", turned=True), *sounds]
