"""The resolved settings of one video: everything a worker needs beside the input files."""

from __future__ import annotations

import secrets
from typing import Final

from contract.choices import Fit, Preset
from contract.frozen import Frozen
from contract.video import MOTION_FRAMES

RANDOM_SEED: Final = -1
"""A request with this seed asks for a random one, like a request without a seed."""


H264_BYTES_PER_PIXEL: Final = 0.1
"""Bytes of encoded video per pixel and frame: a rough, generous figure for the limits on stored bytes."""


MOTION_BYTES_PER_PIXEL: Final = 1.0
"""Likewise of the frames between clips, which are kept without loss."""


class GenerationParams(Frozen):
    """All settings of one video, fully resolved: a worker needs nothing else but the input files."""

    prompts: tuple[str, ...]
    """Prompt k drives clip k; the last one is used again as needed."""
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    """1 leaves the unconditional pass out."""
    flow_shift: float
    product_scale: float
    seed: int
    """Clip k draws its noise with seed + k."""
    num_clips: int
    num_frames: int
    """Frames of the finished video at 25 fps: the length of the speech, or of num_clips clips if shorter."""
    fit: Fit = Fit.COVER
    audio_face_mask: bool = False
    label: str = ""
    """Drawn into the frames, for viewers. It does not touch what the model sees."""
    router_maps: bool = False
    """Keep where the router sent hands and faces. It changes no pixel of the video."""
    preset: Preset = Preset.EXACT
    computed_steps: tuple[int, ...] | None = None
    """The steps in which the network runs; in the others the velocity is interpolated. None: all steps."""

    @property
    def parity(self) -> bool:
        """Whether the official code's behaviour is repeated, defects included."""
        return self.preset is Preset.PARITY

    @property
    def guided(self) -> bool:
        """Whether the unconditional pass runs."""
        return self.guidance_scale != 1.0

    def computes(self, step: int) -> bool:
        """Whether the network runs in a step."""
        return self.computed_steps is None or step in self.computed_steps

    @property
    def num_computed_steps(self) -> int:
        """Steps of a clip in which the network runs."""
        return self.num_inference_steps if self.computed_steps is None else len(self.computed_steps)

    def prompt_of(self, clip: int) -> str:
        """The prompt that drives a clip."""
        return self.prompts[min(clip, len(self.prompts) - 1)]

    def cost(self) -> float:
        """Estimated work in clip·step·megapixels."""
        return self.num_clips * self.num_computed_steps * self.width * self.height / 1e6

    def expected_bytes(self, keep_motion: bool) -> int:
        """About how many bytes the video, its clips, their fragments and the frames between them take."""
        pixels, motions = self.width * self.height, self.num_clips if keep_motion else 1
        motion_bytes = int(MOTION_BYTES_PER_PIXEL * pixels * MOTION_FRAMES)
        return int(3 * H264_BYTES_PER_PIXEL * pixels * self.num_frames) + motions * motion_bytes


def draw_seed() -> int:
    """A seed for a video whose request names none."""
    return secrets.randbelow(2**31)
