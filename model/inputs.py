"""What a video is made from beside its settings, as the caller has it and as the network needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from contract.choices import Fit
from contract.params import GenerationParams
from contract.video import MOTION_FRAMES
from model.media.images import fit_person, place_product


@dataclass(frozen=True)
class VideoInputs:
    """Photos of any size, speech, and perhaps poses."""

    person_image: Image.Image
    audio: np.ndarray
    """(N,) float32, mono, 16 kHz."""
    product_image: Image.Image | None = None
    pose_frames: np.ndarray | None = None
    """(T, h, w, 3) uint8 at 25 fps, of any size."""


@dataclass(frozen=True)
class FramedInputs:
    """The inputs with both photos at the size of the video."""

    person: np.ndarray
    """(H, W, 3) uint8, H and W multiples of 16: also the size of the video."""
    product: np.ndarray | None
    """(H, W, 3) uint8."""
    audio: np.ndarray
    """(N,) float32, mono, 16 kHz."""
    pose_frames: np.ndarray | None
    """(T, h, w, 3) uint8 at 25 fps, of any size."""
    noise: tuple[torch.Tensor, ...] | None = None
    """Per clip (1, 16, 21, h, w) to use instead of drawing it: recorded runs of the official code."""
    pose_latents: tuple[torch.Tensor, ...] | None = None
    """Per clip (1, 16, 20, h, w) to use instead of encoding `pose_frames`: recorded runs too."""


def framed(inputs: VideoInputs, params: GenerationParams) -> FramedInputs:
    """Bring the photos to the frame. Parity stretches the person, as the official code does.

    Raises:
        ValueError: the size is not a multiple of 16.
    """
    width, height = params.width, params.height
    _check_size(width, height)
    person = fit_person(inputs.person_image, width, height, Fit.STRETCH if params.parity else params.fit)
    product = None if inputs.product_image is None else place_product(inputs.product_image, width, height)
    return FramedInputs(
        person=np.asarray(person),
        product=None if product is None else np.asarray(product),
        audio=inputs.audio,
        pose_frames=inputs.pose_frames,
    )


def check(
    inputs: FramedInputs, params: GenerationParams, first_clip: int, motion_frames: np.ndarray | None
) -> None:
    """Raises ValueError if no video can be made of this."""
    height, width = inputs.person.shape[:2]
    _check_size(width, height)
    if (width, height) != (params.width, params.height):
        raise ValueError(
            f"the person image is {width}x{height}, the video is to be {params.width}x{params.height}"
        )
    if not params.prompts:
        raise ValueError("at least one prompt is needed")
    if params.num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, not {params.num_clips}")
    if first_clip < 0:
        raise ValueError(f"first_clip must not be negative: {first_clip}")
    expected = (MOTION_FRAMES, height, width, 3)
    if first_clip > 0 and (motion_frames is None or motion_frames.shape != expected):
        got = None if motion_frames is None else motion_frames.shape
        raise ValueError(f"continuing at clip {first_clip} needs motion_frames of {expected}, not {got}")


def _check_size(width: int, height: int) -> None:
    if height % 16 or width % 16:
        raise ValueError(f"width and height must be multiples of 16, not {width}x{height}")
