"""Videos with what is wrong with people's own clips: too short, at another rate, lying on their side."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# The display matrix of an MP4's track header, nine numbers: the picture as it is, and turned by 90 degrees.
ONE, W = 1 << 16, 1 << 30
AS_IT_IS, TURNED = (ONE, 0, 0, 0, ONE, 0, 0, 0, W), (0, ONE, 0, -ONE, 0, 0, 0, 0, W)


def write_video(path: Path, frames: np.ndarray, times: list[Fraction]) -> None:
    """An MP4 whose frame i is shown at times[i] seconds."""
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 3000)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 3000), round(time * 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def at_rate(count: int, rate: int) -> list[Fraction]:
    return [Fraction(number, rate) for number in range(count)]


def lay_on_its_side(path: Path, turned: Path) -> None:
    """The same video with metadata that turn it by 90 degrees when it is shown."""

    def matrix(numbers: tuple[int, ...]) -> bytes:
        return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)

    data = path.read_bytes()
    assert data.count(matrix(AS_IT_IS)) == 2, "of the movie and of its only track"
    start = data.rindex(matrix(AS_IT_IS))
    turned.write_bytes(data[:start] + matrix(TURNED) + data[start + 36 :])
