"""The cells `face` and `hand_object`: boxes as JSON, checked, because a wrong one would train in silence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .routing_labels import latent_frame
from .table import nearest

PARTS = ("l_h", "r_h", "obj")
Box = list[float]


def parse_face(cell: str, size: tuple[int, int], num_latent_frames: int) -> dict[str, Box]:
    """Boxes by frame. Frames whose box is null are left out, and an empty cell holds none.

    Args:
        size: (height, width) of the video as stored.

    Raises:
        ValueError: the cell holds something else, or no box of the clip.
    """
    boxes = _frames(cell, num_latent_frames)
    return {key: checked(key, box, size) for key, box in boxes.items() if box is not None}


def parse_hands(cell: str, size: tuple[int, int], num_latent_frames: int) -> dict[str, dict[str, Box]]:
    """Boxes of hands and object by frame, see `parse_face`."""
    found: dict[str, dict[str, Box]] = {}
    for key, boxes in _frames(cell, num_latent_frames).items():
        if not isinstance(boxes, dict):
            raise ValueError(f'{key} holds {_shown(boxes)}; it must hold {{"l_h": [x1, y1, x2, y2], …}}')
        for part in boxes:
            if part not in PARTS:
                hint = nearest(part, PARTS)
                raise ValueError(f"{key} has an unknown part {part}{hint}: known are {', '.join(PARTS)}")
        found[key] = {
            part: checked(f"{key}, {part}", box, size) for part, box in boxes.items() if box is not None
        }
    return found


def checked(where: str, box: Any, size: tuple[int, int]) -> Box:
    """The box, if it is one. Raises ValueError."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(value) in (int, float) and math.isfinite(value) for value in box)
    ):
        raise ValueError(f"{where}: a box is four numbers [x1, y1, x2, y2], not {_shown(box)}")
    x1, y1, x2, y2 = box
    height, width = size
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{where}: {_shown(box)} ends before it begins; a box is [x1, y1, x2, y2]")
    if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
        raise ValueError(f"{where}: {_shown(box)} lies outside the video of {width}×{height} pixels")
    if max(box) <= 1 and min(height, width) > 1 and max(box) > 0:
        raise ValueError(f"{where}: {_shown(box)} looks like shares of the picture; boxes are in pixels")
    return box


def _frames(cell: str, num_latent_frames: int) -> Mapping[str, Any]:
    if not cell:
        return {}
    try:
        value = json.loads(cell)
    except ValueError as error:
        raise ValueError(f"{_shown(cell)} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f'boxes are a JSON object {{"frame_2": …}}, not {_shown(value)}')
    for key in value:
        if not re.fullmatch(r"frame_\d+", key):
            raise ValueError(f"unknown key {key}: keys are frame_2, frame_6, …")
    places = [latent_frame(key) for key in value]
    if value and not any(place is not None and place < num_latent_frames for place in places):
        raise ValueError(f"no key lies in the clip, which is frame_2 to frame_{4 * num_latent_frames + 1}")
    return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
