"""Where the network's router sent hands and faces → a small video to lay over the clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contract.video import CLIP_FRAMES
from model.media.video import encode_clip

MAP_PIXELS = 4
"""A token of 16 × 16 pixels of the clip is so many pixels wide and high in the map."""


def write_router_map(routes: np.ndarray, num_frames: int, path: str | Path) -> None:
    """Write a clip's map, black with hands in red and faces in green, as an MP4 of `num_frames` frames.

    Args:
        routes: (F, rows, columns, 2) uint8, weights of hand and face of each token, of all 80 frames.
    """
    colours = np.concatenate([routes, np.zeros_like(routes[..., :1])], axis=-1)  # (F, rows, columns, 3)
    small = colours.repeat(CLIP_FRAMES // len(colours), axis=0)[:num_frames]
    encode_clip(small.repeat(MAP_PIXELS, axis=1).repeat(MAP_PIXELS, axis=2), path)
