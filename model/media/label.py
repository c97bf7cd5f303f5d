"""A label that viewers see, such as "AI-generated", drawn into the frames of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHARE_OF_HEIGHT = 0.03
"""Height of the letters, as a part of the frame's."""
SMALLEST = 8
OPACITY = 0.6
"""Of the dark box behind the letters."""


def with_label(frames: np.ndarray, text: str) -> np.ndarray:
    """The frames (T, H, W, 3), uint8, with `text` in white on a dark box in the lower left corner.

    A text that is too wide for the frame is drawn smaller.
    """
    if not text:
        return frames
    _, height, width, _ = frames.shape
    size = max(SMALLEST, round(SHARE_OF_HEIGHT * height))
    font = ImageFont.load_default(size)
    while size > 4 and font.getlength(text) > width - 2 * size:
        size -= 1
        font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    margin = max(2, size // 2)
    box = (min(width, int(right - left) + 2 * margin), min(height, int(bottom - top) + 2 * margin))
    letters = Image.new("L", box, 0)
    ImageDraw.Draw(letters).text((margin - left, margin - top), text, fill=255, font=font)
    coverage = np.asarray(letters, np.float32)[..., None] / 255  # (h, w, 1)
    labelled = frames.copy()
    place = labelled[:, height - box[1] :, : box[0]]
    place[:] = np.round(place * (1 - OPACITY) * (1 - coverage) + 255 * coverage).astype(np.uint8)
    return labelled
