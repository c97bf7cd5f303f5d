"""Videos of training data → frames, one by one. Those whose time is not that of the clip are refused."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image

from contract.video import FPS
from model.media.errors import MediaError
from model.media.images import cover
from model.media.pose import upright

ADVICE = "convert it: ffmpeg -i OLD -vf fps=25 NEW"


@dataclass(frozen=True)
class Footage:
    """The frames at the size of training, and the size as stored."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    stored: tuple[int, int]
    """(height, width) of the upright picture."""
    turned: bool
    """Its picture lies on its side in the file, and metadata turn it."""


def read_footage(path: Path, size: tuple[int, int], count: int, *, exactly: bool = False) -> Footage:
    """Read the first `count` frames of a video, upright.

    Args:
        size: (width, height) to which each frame is brought.
        exactly: a longer video is refused, too.

    Raises:
        FileNotFoundError: there is no such file.
        MediaError: it cannot be decoded, holds too few or too many frames, or does not run at 25 per second.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    frames: list[np.ndarray] = []
    times: list[Fraction] = []
    turned, stored = False, (0, 0)
    try:
        with av.open(str(path), mode="r") as container:
            if not container.streams.video:
                raise MediaError("the file has no video stream")
            for frame in container.decode(container.streams.video[0]):
                if len(frames) == count:
                    if exactly:
                        raise MediaError(f"the video holds more than {count} frames")
                    break
                image = upright(frame)
                turned, stored = frame.rotation % 180 != 0, (image.shape[0], image.shape[1])
                frames.append(np.asarray(cover(Image.fromarray(image), *size)))
                if frame.pts is not None and frame.time_base:
                    times.append(frame.pts * frame.time_base)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise MediaError(f"the video cannot be decoded: {error}") from error
    if len(frames) < count:
        raise MediaError(f"the video holds {len(frames)} frames, and the clip needs {count}")
    _check_rate(times)
    return Footage(np.stack(frames), stored, turned)


def _check_rate(times: list[Fraction]) -> None:
    """Each frame must be due within half a frame of its place at 25 per second: there the speech is."""
    if len(times) < 2:
        return
    late = [abs(time - times[0] - Fraction(number, FPS)) for number, time in enumerate(times)]
    if max(late) <= Fraction(1, 2 * FPS):
        return
    steps = [after - before for before, after in pairwise(times)]
    if max(steps) - min(steps) > Fraction(1, 200):
        raise MediaError(f"the frames come at a variable rate, and must come at {FPS} per second; {ADVICE}")
    rate = float((len(times) - 1) / (times[-1] - times[0]))
    raise MediaError(f"the video runs at {rate:.4g} frames per second instead of {FPS}; {ADVICE}")
