"""Photos → RGB images of the frame's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contract.choices import Fit
from contract.video import POSTER_HEIGHT
from model.media.errors import MediaError

PRODUCT_MARGIN = 1.25
"""The product fills 1/1.25 of the frame, as in training (official code)."""


def load_image(path: str | Path) -> Image.Image:
    """PNG, JPEG or WebP → RGB, upright by its EXIF orientation, transparent parts on white.

    Raises:
        MediaError: the file is no such image, or is truncated.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise MediaError(f"not a readable PNG, JPEG or WebP image: {error}") from error


def fit_person(image: Image.Image, width: int, height: int, fit: Fit = Fit.COVER) -> Image.Image:
    """Bring a person photo to the frame.

    cover, the default, fills the frame and crops the rest, as training did. contain shows all of the photo
    between black bars. stretch distorts the photo, as the official inference script does.
    """
    image = _to_rgb(image)
    if fit is Fit.STRETCH:
        return image.resize((width, height))
    if fit is Fit.CONTAIN:
        return _on_black(_resize(image, min(width / image.width, height / image.height)), width, height)
    image = _resize(image, max(width / image.width, height / image.height))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def place_product(image: Image.Image, width: int, height: int) -> Image.Image:
    """Fit a product photo into the frame with a margin, centred on black (official code)."""
    image = _to_rgb(image)
    scale = min(width / image.width, height / image.height) / PRODUCT_MARGIN
    return _on_black(_resize(image, scale), width, height)


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop the centre to the frame's aspect ratio and resize, as the official code does with poses."""
    if image.size == (width, height):
        return image
    if image.height / image.width < height / width:
        cropped = int(image.height / height * width)
        left = (image.width - cropped) // 2
        box = (left, 0, left + cropped, image.height)
    else:
        cropped = int(image.width / width * height)
        top = (image.height - cropped) // 2
        box = (0, top, image.width, top + cropped)
    return image.crop(box).resize((width, height))


def write_poster(frames: np.ndarray, path: str | Path) -> None:
    """Write the middle one of frames (T, H, W, 3) uint8 RGB as a JPEG of at most 360 rows."""
    image = Image.fromarray(frames[len(frames) // 2])
    if image.height > POSTER_HEIGHT:
        width = max(1, round(image.width * POSTER_HEIGHT / image.height))
        image = image.resize((width, POSTER_HEIGHT), Image.Resampling.BILINEAR, reducing_gap=2.0)
    image.save(path, "JPEG", quality=85)


def _resize(image: Image.Image, scale: float) -> Image.Image:
    """Lanczos to shrink, bilinear to enlarge (official code)."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BILINEAR)


def _on_black(image: Image.Image, width: int, height: int) -> Image.Image:
    frame = Image.new("RGB", (width, height))
    frame.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return frame


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion clips instead of scaling
        grey = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
