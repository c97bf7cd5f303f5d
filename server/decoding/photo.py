"""Decodes a photo into an upright PNG in sRGB without anything else in it, which is what workers get.

It runs only in the sandbox, or on one's own files. No bytes of a client are ever stored: pixels are decoded
here and written to a new file. The size is read from the header before anything is decoded.
"""

from __future__ import annotations

import base64
import io
import math
import mmap
import struct
from typing import BinaryIO, Final

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401  Pillow would look for it, and so import all its plugins
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from contract.video import POSTER_HEIGHT
from server.decoding import jpeg
from server.decoding.colour import profile_of, to_srgb
from server.decoding.formats import Limits, RejectedFileError, truncated

MOST_KEPT_PIXELS: Final = 25_000_000
"""Larger photos are shrunk by a whole number. No frame has a tenth of these pixels."""
_HEAD_BYTES: Final = 2**18
"""The bytes at the start of a file in which colours are looked for by name."""
_PLUGINS: Final = {"PNG": "PNG", "WEBP": "WEBP", "AVIF": "AVIF", "HEIC": "HEIF"}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that makes a photo upright, by its Exif orientation."""
_DAMAGED: Final = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)
"""The errors that Pillow and its plugins raise about a file."""
_ALPHA: Final = ("RGBA", "LA", "PA", "RGBa", "La")

# Pillow checks a limit of its own and only warns; ours is checked before decoding.
Image.MAX_IMAGE_PIXELS = None


def _check_end(data: mmap.mmap, kind: str) -> int:
    """Refuse a file without its end, and return the number of passes over the pixels.

    Decoders forgive a missing end. We do not, because nobody knows what else is missing.
    """
    if kind == "JPEG":
        return jpeg.count_scans(data)
    if kind == "PNG":
        complete = data.rfind(b"IEND\xaeB`\x82") > 0
    elif kind == "WEBP":
        complete = len(data) >= struct.unpack("<I", data[4:8])[0] + 8
    else:
        complete = True  # the libraries for HEIC and AVIF forgive nothing
    if not complete:
        raise truncated()
    return 1


def _open(source: BinaryIO, kind: str) -> Image.Image:
    try:
        # Pillow has a class of its own for several JPEGs in one file; ours is the first.
        return JpegImageFile(source) if kind == "JPEG" else Image.open(source, formats=[_PLUGINS[kind]])
    except (*_DAMAGED, UnidentifiedImageError, struct.error) as error:
        raise RejectedFileError("undecodable_file", f"The {kind} image cannot be read.") from error


def _check_size(image: Image.Image, scans: int, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise RejectedFileError(
            "image_too_large", f"The image has {width} × {height} pixels.", limits.max_pixels
        )
    if min(width, height) < limits.min_side:
        raise RejectedFileError(
            "image_too_small", f"The image has {width} × {height} pixels.", limits.min_side
        )
    jpeg.check_scans(scans, width * height)


def _shrink_factor(image: Image.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / MOST_KEPT_PIXELS))


def _load(image: Image.Image, kind: str) -> Image.Image:
    """Decode. A JPEG far larger than any frame is shrunk on the way, so that it never is in memory whole."""
    if (factor := _shrink_factor(image)) > 1:
        image.draft(image.mode, (image.width // factor, image.height // factor))
    try:
        image.load()
    except _DAMAGED as error:
        code = "truncated_file" if "truncated" in str(error).lower() else "undecodable_file"
        raise RejectedFileError(code, f"The {kind} image is damaged.") from error
    return image


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """A picture of mode L, LA, RGB, RGBA or CMYK: palettes are looked up, 16 bits scaled."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips instead of scaling.
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in _ALPHA or "transparency" in image.info:
        return image if image.mode == "LA" else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    factor = _shrink_factor(image)
    return image.reduce(factor) if factor > 1 else image


def _opaque(image: Image.Image, profile: bytes | None) -> Image.Image:
    """As sRGB on white, RGB."""
    alpha = image.getchannel("A") if image.mode in _ALPHA else None
    if alpha is not None:
        image = image.convert(image.mode[:-1])
    rgb = (image if profile is None else to_srgb(image, profile)).convert("RGB")
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return rgb


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """`rgb` turned as the Exif data of `image` say; as it is where they are damaged."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, OSError, EOFError, struct.error, LookupError):
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def decode_image(source: BinaryIO, target: BinaryIO, kind: str, limits: Limits) -> dict[str, object]:
    """One upright RGB PNG in sRGB out of a photo, and a thumbnail of it. Raises RejectedFileError."""
    with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scans, head = _check_end(data, kind), data[:_HEAD_BYTES]
    source.seek(0)
    image = _open(source, kind)
    _check_size(image, scans, limits)
    profile = profile_of(image, head)
    rgb = _upright(image, _opaque(_shrunk(_in_eight_bits(_load(image, kind))), profile))
    rgb.info = {}  # colour profiles and texts would be copied into the PNG
    rgb.save(target, "PNG", compress_level=1)
    return {"width": rgb.width, "height": rgb.height, "thumbnail": base64.b64encode(_thumbnail(rgb)).decode()}


def _thumbnail(rgb: Image.Image) -> bytes:
    """The photo, small, as a JPEG."""
    scale = POSTER_HEIGHT / max(rgb.height, rgb.width / 2, POSTER_HEIGHT)
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    small = rgb.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
