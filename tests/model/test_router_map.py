"""Where the router sent hands and faces, kept as a video that changes nothing about the clip."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from model.media import write_router_map


def test_a_map_shows_hands_in_red_and_faces_in_green_where_and_when_they_are(tmp_path: Path) -> None:
    routes = np.zeros((20, 8, 6, 2), np.uint8)
    routes[:10, :4, :3, 0] = 255  # a hand, above and left, in the first half
    routes[10:, 4:, 3:, 1] = 255  # a face, below and right, in the second
    write_router_map(routes, 70, tmp_path / "map.mp4")
    with av.open(str(tmp_path / "map.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), frames[0].shape) == (70, (32, 24, 3))
    red, green, blue = (int(level) for level in frames[20][4:12, 4:8].mean(axis=(0, 1)))
    assert red > 200 > 60 > max(green, blue)
    red, green, blue = (int(level) for level in frames[60][20:28, 16:20].mean(axis=(0, 1)))
    assert green > 200 > 60 > max(red, blue)
    assert frames[20][20:28, 16:20].mean() < 20
    assert frames[60][4:12, 4:8].mean() < 20
