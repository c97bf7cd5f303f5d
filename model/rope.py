"""Three-axis rotary position embedding of every kind of CoInteract token (paper section 3; official code).

Tables are built once per clip in float64 and kept as float32, without a head dimension: 85,000 tokens of a
720x1280 clip take 87 MB, and nothing is rebuilt between denoising steps.
"""

from collections.abc import Sequence

import numpy as np
import torch

RotaryTable = tuple[torch.Tensor, torch.Tensor]  # (cos, signed sin), each (N, head_dim) float32

PERSON_TIME = 30
PRODUCT_TIME = 31
# Newest first: one frame at full resolution, two at half, sixteen at a quarter in groups of four.
MOTION_TIMES: tuple[tuple[int, ...], ...] = ((-1,), (-3,), (-19, -14, -9, -4))
# The HOI stream reads the last rows of a table of this length, so that it never shares a column with the video.
TABLE_ROWS = 1024


def axis_frequencies(head_dim: int, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Angles per unit of (time, height, width); together they have head_dim / 2 entries, float64.

    Height and width take a third of the pairs each (rounded down), time takes the rest.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    spatial = head_dim // 2 // 3
    sizes = (head_dim // 2 - 2 * spatial, spatial, spatial)
    time, height, width = (theta ** -(torch.arange(n, dtype=torch.float64) / n) for n in sizes)
    return time, height, width


def spread(extent: int, count: int) -> list[int]:
    """`count` whole positions from 0 to extent - 1, evenly spread and truncated (official code)."""
    return np.linspace(0, extent - 1, count).astype(int).tolist()


def grid_angles(
    times: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    frequencies: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Angles of a (time, row, column) grid in token order, (T * H * W, head_dim / 2) float64."""
    shape = (len(times), len(rows), len(columns))
    parts = []
    for axis, (positions, frequency) in enumerate(zip((times, rows, columns), frequencies, strict=True)):
        angles = torch.outer(torch.tensor(positions, dtype=torch.float64), frequency)
        view = [1, 1, 1, frequency.numel()]
        view[axis] = len(positions)
        parts.append(angles.view(view).expand(*shape, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def rotary_table(angles: torch.Tensor, device: torch.device | None = None) -> RotaryTable:
    """Cosines and sines in the interleaved layout `apply_rotary` reads, each (N, head_dim) float32.

    The sine is stored negated on even places, so that a rotation is one swap of neighbours and one multiply-add.
    """
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = angles.sin()
    signed_sin = torch.stack((-sin, sin), dim=-1).flatten(-2)
    return cos.to(device, torch.float32), signed_sin.to(device, torch.float32)


def target_angles(frames: int, rows: int, columns: int, head_dim: int) -> torch.Tensor:
    """The clip being generated: plain indices."""
    return grid_angles(range(frames), range(rows), range(columns), axis_frequencies(head_dim))


def person_angles(rows: int, columns: int, head_dim: int) -> torch.Tensor:
    return grid_angles([PERSON_TIME], range(rows), range(columns), axis_frequencies(head_dim))


def product_angles(rows: int, columns: int, scale: float, head_dim: int) -> torch.Tensor:
    """The product image; a scale below 1 squeezes its positions, so that the model sees a smaller object."""
    if scale <= 0:
        raise ValueError(f"product_scale must be positive, got {scale}")
    return grid_angles(
        [PRODUCT_TIME],
        spread(max(1, round(rows * scale)), rows),
        spread(max(1, round(columns * scale)), columns),
        axis_frequencies(head_dim),
    )


def motion_angles(
    grids: Sequence[tuple[int, int]], target_rows: int, target_columns: int, head_dim: int
) -> torch.Tensor:
    """The previous clip, packed at three resolutions; `grids` holds (rows, columns) of each, newest first."""
    frequencies = axis_frequencies(head_dim)
    parts = [
        grid_angles(times, spread(target_rows, rows), spread(target_columns, columns), frequencies)
        for times, (rows, columns) in zip(MOTION_TIMES, grids, strict=True)
    ]
    return torch.cat(parts)


def hoi_angles(frames: int, rows: int, columns: int, head_dim: int) -> torch.Tensor:
    """The HOI structure stream: the target's times and rows, columns of its own."""
    first_column = TABLE_ROWS - columns
    return grid_angles(range(frames), range(rows), range(first_column, TABLE_ROWS), axis_frequencies(head_dim))


def apply_rotary(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Rotate neighbouring pairs of `states` (B, N, heads, head_dim) in float32; dtype is kept."""
    cos, signed_sin = table
    swapped = states.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    rotated = torch.addcmul(states * cos.unsqueeze(1), swapped.to(cos.dtype), signed_sin.unsqueeze(1))
    return rotated.to(states.dtype)


def select(table: RotaryTable, tokens: slice) -> RotaryTable:
    return table[0][tokens], table[1][tokens]
