"""Pose videos → frames at 25 fps."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from contract.video import FPS
from model.media.errors import MediaError
from model.media.images import cover


def load_pose(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    max_frames: int | None = None,
    resample: bool = True,
) -> np.ndarray:
    """Decode a pose video to (T, H, W, 3) uint8 at 25 fps.

    Args:
        size: (width, height) to which each frame is brought while reading, because long videos are large.
        max_frames: stop after so many frames at 25 fps.
        resample: False takes every frame whatever the video's rate, as the official code does.

    Raises:
        MediaError: the file has no video, or cannot be decoded.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path), mode="r") as container:
            if not container.streams.video:
                raise MediaError("the file has no video stream")
            decoded = container.decode(container.streams.video[0])
            for image in _at_25_fps(decoded) if resample else map(upright, decoded):
                if max_frames is not None and len(frames) >= max_frames:
                    break
                frames.append(image if size is None else np.asarray(cover(Image.fromarray(image), *size)))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise MediaError(f"the video cannot be decoded: {error}") from error
    if not frames:
        raise MediaError("the video holds no frames")
    return np.stack(frames)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the file's metadata ask: phones store pictures as the sensor lies."""
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _at_25_fps(decoded: Iterator[av.VideoFrame]) -> Iterator[np.ndarray]:
    """The frame on screen at each 1/25 s, by timestamps, which is right for variable rates, too."""
    shown: np.ndarray | None = None
    start = Fraction(0)
    end = Fraction(0)
    tick = 0
    for frame in decoded:
        rate = Fraction(frame.time_base or Fraction(1, FPS))
        time = (frame.pts or 0) * rate
        if shown is None:
            start = time
        while shown is not None and Fraction(tick, FPS) < time - start:
            yield shown
            tick += 1
        shown = upright(frame)
        end = time - start + (frame.duration * rate if frame.duration else Fraction(1, FPS))
    while shown is not None and Fraction(tick, FPS) < end:
        yield shown
        tick += 1
