"""Tiny files, made on the spot: a decoding process loads its codecs by decoding them."""

from __future__ import annotations

import io
import wave

from PIL import Image, ImageCms

from server.decoding.formats import Sample


def image(kind: str, mode: str, turned: bool = False, profile: bytes | None = None) -> Sample:
    """A black picture."""
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6  # orientation
    buffer = io.BytesIO()
    Image.new(mode, (32, 32)).save(buffer, kind, exif=exif, icc_profile=profile)
    return "image", buffer.getvalue()


def _wav(channels: int) -> Sample:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * channels * 4000))
    return "audio", buffer.getvalue()


def usual_samples() -> list[Sample]:
    """What most requests hold."""
    return [image("PNG", "RGB"), _wav(1)]


def all_samples() -> list[Sample]:
    """One of each format and way of decoding that needs no FFmpeg."""
    modes = (("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("JPEG", "CMYK"))
    images = [image(kind, mode) for kind, mode in modes]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [*usual_samples(), *images, image("JPEG", "RGB", turned=True, profile=profile), _wav(2)]
