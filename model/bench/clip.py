"""The clip that is measured: one after the first, with a product, and a pose if the checkpoint takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from contract.prompts import PROMPT_TOKENS
from contract.video import CLIP_FRAMES, CLIP_LATENT_FRAMES, MOTION_LATENT_FRAMES
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs

VAE_RATIO = 8

Draw = Callable[..., torch.Tensor]
"""A tensor of the shape that is given."""


@dataclass(frozen=True)
class ClipShape:
    """Of the frames, in pixels."""

    width: int
    height: int
    pose: bool

    @property
    def size(self) -> str:
        """Such as "480x832"."""
        return f"{self.width}x{self.height}"

    def latents(self, frames: int) -> tuple[int, ...]:
        """(1, 16, frames, h, w)"""
        return (1, 16, frames, self.height // VAE_RATIO, self.width // VAE_RATIO)


OFFICIAL_SHAPES = (ClipShape(480, 832, pose=True), ClipShape(720, 1280, pose=True))
"""Sizes that the official weights are made for, upright, with all that a clip can have."""


def conditioning_inputs(
    model: CoInteractTransformer3DModel, shape: ClipShape, draw: Draw
) -> ConditioningInputs:
    """What drives the clip."""
    config = model.config
    return ConditioningInputs(
        person_latents=draw(*shape.latents(1)),
        encoder_hidden_states=draw(1, PROMPT_TOKENS, config.text_dim),
        audio_embeds=draw(1, config.num_audio_layers, config.audio_dim, CLIP_FRAMES),
        product_latents=draw(*shape.latents(1)),
        motion_latents=draw(*shape.latents(MOTION_LATENT_FRAMES)),
        pose_latents=draw(*shape.latents(CLIP_LATENT_FRAMES)) if shape.pose else None,
    )
