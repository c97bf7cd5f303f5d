"""Face and hand boxes of a video → the expert that each token should be routed to (official data format)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model.kernels.router import BASE, FACE, HAND

TOKEN_PIXELS = 16
"""One token covers 16×16 pixels: 8 of the VAE times 2 of the patch embedding."""

FaceBoxes = Mapping[str, Sequence[float]]
HandBoxes = Mapping[str, Mapping[str, Sequence[float] | None]]


def routing_labels(
    face: FaceBoxes,
    hands: HandBoxes,
    original: tuple[int, int],
    target: tuple[int, int],
    num_latent_frames: int = 20,
) -> np.ndarray:
    """Expert per token, (F, rows, columns) uint8: BASE, HAND or FACE. A hand over the face counts as HAND.

    Args:
        face: {"frame_2": [x1, y1, x2, y2], …} in pixels of the original video.
        hands: {"frame_2": {"l_h": […], "r_h": […], "obj": […]}, …}; the object is no hand and is left out.
        original, target: (height, width) of the video as stored and as trained on (cover, centre crop).

    Key `frame_k` belongs to latent frame (k - 2) // 4; keys outside the clip are ignored.
    """
    rows, columns = target[0] // TOKEN_PIXELS, target[1] // TOKEN_PIXELS
    labels = np.full((num_latent_frames, rows, columns), BASE, np.uint8)
    for key, box in face.items():
        _mark(labels, key, box, FACE, original, target)
    for key, boxes in hands.items():
        for side in ("l_h", "r_h"):
            box_or_none = boxes.get(side)
            if box_or_none:
                _mark(labels, key, box_or_none, HAND, original, target)
    return labels


def object_tokens(
    hands: HandBoxes,
    original: tuple[int, int],
    target: tuple[int, int],
    num_latent_frames: int = 20,
) -> np.ndarray:
    """Whether the held object's box touches a token: (F, rows, columns) uint8, 1 or 0.

    The arguments are those of `routing_labels`.
    """
    rows, columns = target[0] // TOKEN_PIXELS, target[1] // TOKEN_PIXELS
    touched = np.zeros((num_latent_frames, rows, columns), np.uint8)
    for key, boxes in hands.items():
        if box := boxes.get("obj"):
            _mark(touched, key, box, 1, original, target)
    return touched


def latent_frame(key: str) -> int | None:
    """ "frame_14" → 3; None for other keys and for frames before the clip."""
    name, _, number = key.partition("_")
    if name != "frame" or not number.isdigit():
        return None
    index = (int(number) - 2) // 4
    return index if index >= 0 else None


def box_tokens(
    box: Sequence[float], original: tuple[int, int], target: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Rows and columns of the tokens that a box touches, after resizing to cover and cropping the centre.

    None if the crop cuts the box off.
    """
    scale = max(target[0] / original[0], target[1] / original[1])
    top = (round(original[0] * scale) - target[0]) / 2
    left = (round(original[1] * scale) - target[1]) / 2
    x1, x2 = (v * scale - left for v in (box[0], box[2]))
    y1, y2 = (v * scale - top for v in (box[1], box[3]))
    if x2 < 0 or y2 < 0 or x1 > target[1] or y1 > target[0]:
        return None
    return _span(y1, y2, target[0]), _span(x1, x2, target[1])


def _span(start: float, end: float, size: int) -> slice:
    last = size // TOKEN_PIXELS - 1
    first_token = min(int(max(0.0, start) / TOKEN_PIXELS), last)
    last_token = min(int(min(float(size), end) / TOKEN_PIXELS), last)
    return slice(first_token, last_token + 1)


def _mark(
    labels: np.ndarray,
    key: str,
    box: Sequence[float],
    expert: int,
    original: tuple[int, int],
    target: tuple[int, int],
) -> None:
    index = latent_frame(key)
    if index is None or index >= len(labels) or len(box) != 4:
        return
    tokens = box_tokens(box, original, target)
    if tokens is not None:
        labels[index, tokens[0], tokens[1]] = expert
