"""The resolved settings of one video: everything a worker needs beside the input files."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from contract.frozen import Frozen


class Fit(StrEnum):
    """How a person image of another aspect ratio is brought to the frame. The official code stretches."""

    COVER = "cover"
    CONTAIN = "contain"
    STRETCH = "stretch"


class GenerationParams(Frozen):
    """All settings of one video, fully resolved: a worker needs nothing else but the input files."""

    prompts: tuple[str, ...]
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    product_scale: float
    seed: int
    num_clips: int
    num_frames: int
    """Frames of the finished video at 25 fps: as long as the speech, or num_clips clips if that is shorter.
    """
    fit: Fit = Fit.COVER
    audio_face_mask: bool = False
    preset: Literal["exact", "parity"] = "exact"
    """`parity` repeats the official code's behaviour including its defects; see docs/model.md."""
