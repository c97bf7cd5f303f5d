"""Three-axis rotary position embedding of every kind of CoInteract token (paper section 3; official code).

Tables are built once per clip in float64 and kept as float32, without a head dimension: 85,000 tokens of a
720x1280 clip take 43 MB, and nothing is rebuilt between denoising steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from model.kernels.rotary import RotaryTable

PERSON_TIME = 30
PRODUCT_TIME = 31
# Newest first: one frame at full resolution, two at half, sixteen at a quarter in groups of four.
MOTION_TIMES: tuple[tuple[int, ...], ...] = ((-1,), (-3,), (-19, -14, -9, -4))
# The HOI stream has the last of so many columns, so that it never shares one with the video.
TABLE_ROWS = 1024


def axis_frequencies(head_dim: int, theta: float = 10000.0) -> tuple[torch.Tensor, ...]:
    """Angles per unit of (time, height, width); together they have head_dim / 2 entries, float64.

    Height and width take a third of the pairs each (rounded down), time takes the rest.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    spatial = head_dim // 2 // 3
    sizes = (head_dim // 2 - 2 * spatial, spatial, spatial)
    return tuple(theta ** -(torch.arange(n, dtype=torch.float64) / n) for n in sizes)


def spread(extent: int, count: int) -> list[int]:
    """`count` whole positions from 0 to extent - 1, evenly spread and truncated (official code)."""
    return [int(position) for position in np.linspace(0, extent - 1, count)]


class Positions(NamedTuple):
    """Where a grid of tokens stands, per axis; the grid's tokens run time-major, columns fastest."""

    times: Sequence[int]
    rows: Sequence[int]
    columns: Sequence[int]


class GridRope(nn.Module):
    """Angles of a grid of tokens."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, positions: Positions) -> torch.Tensor:
        """Angles (T, rows, columns, head_dim / 2), float64."""
        shape = tuple(len(axis) for axis in positions)
        parts = []
        for axis, frequencies in enumerate(axis_frequencies(self.head_dim)):
            angles = torch.outer(torch.tensor(list(positions[axis]), dtype=torch.float64), frequencies)
            view = [1, 1, 1, frequencies.numel()]
            view[axis] = shape[axis]
            parts.append(angles.view(view).expand(*shape, -1))
        return torch.cat(parts, dim=-1)


def rotary_table(angles: torch.Tensor, device: torch.device | None = None) -> RotaryTable:
    """(N, head_dim / 2) angles → their cosines and sines, (N, head_dim / 2, 2) float32."""
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(device, torch.float32)


def target_positions(frames: int, rows: int, columns: int) -> Positions:
    """The clip being generated: plain indices."""
    return Positions(range(frames), range(rows), range(columns))


def person_positions(rows: int, columns: int) -> Positions:
    return Positions([PERSON_TIME], range(rows), range(columns))


def product_positions(rows: int, columns: int, scale: float) -> Positions:
    """The product image. A scale below 1 squeezes its positions, so that the model sees a smaller object."""
    if scale <= 0:
        raise ValueError(f"product_scale must be positive, got {scale}")
    return Positions(
        [PRODUCT_TIME],
        spread(max(1, round(rows * scale)), rows),
        spread(max(1, round(columns * scale)), columns),
    )


def motion_positions(
    grids: Sequence[tuple[int, int]], target_rows: int, target_columns: int
) -> list[Positions]:
    """The previous clip, packed at three resolutions; `grids` holds (rows, columns) of each, newest first."""
    return [
        Positions(times, spread(target_rows, rows), spread(target_columns, columns))
        for times, (rows, columns) in zip(MOTION_TIMES, grids, strict=True)
    ]


def hoi_positions(frames: int, rows: int, columns: int) -> Positions:
    """The HOI structure stream: the target's times and rows, columns of its own."""
    return Positions(range(frames), range(rows), range(TABLE_ROWS - columns, TABLE_ROWS))
