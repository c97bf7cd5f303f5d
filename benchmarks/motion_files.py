"""How large the frames are that are kept between clips, and how long packing them takes.

    python -m benchmarks.motion_files

A camera circles over the bundled photo of a person, as it is and under noise that differs in each frame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from contract.video import MOTION_FRAMES
from deploy.samples import BUNDLED
from model.media import load_image, read_motion, write_motion

MARGIN = 64


def panned(width: int, height: int, noise: float) -> np.ndarray:
    """Frames (73, H, W, 3) of a camera that circles over the photo."""
    rng = np.random.default_rng(0)
    size = (width + 2 * MARGIN, height + 2 * MARGIN)
    photo = np.asarray(load_image(BUNDLED.person).resize(size, Image.Resampling.BICUBIC), np.float32)
    frames = np.empty((MOTION_FRAMES, height, width, 3), np.uint8)
    for index in range(MOTION_FRAMES):
        top, left = (round(MARGIN * (1 + turn(index / 9))) for turn in (np.sin, np.cos))
        shown = photo[top : top + height, left : left + width]
        frames[index] = np.clip(shown + rng.normal(0, noise, shown.shape), 0, 255)
    return frames


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "motion"
        for width, height in ((480, 832), (720, 1280)):
            for noise in (0.0, 0.5, 1.0, 2.0):
                frames = panned(width, height, noise)
                began = time.perf_counter()
                write_motion(frames, path)
                written = time.perf_counter()
                exact = np.array_equal(read_motion(path), frames)
                read = time.perf_counter()
                size = f"{path.stat().st_size / 1e6:.1f} of {frames.nbytes / 1e6:.0f} MB"
                times = f"written in {written - began:.1f} s, read in {read - written:.1f} s"
                sys.stdout.write(f"{width}x{height}, noise {noise}: {size}, {times}, exact: {exact}\n")


if __name__ == "__main__":
    main()
