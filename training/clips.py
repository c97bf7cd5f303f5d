"""A training clip before and after encoding, and the official joint encoding of motion and target."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from contract.video import CLIP_FRAMES, MOTION_LATENT_FRAMES
from model.pipeline import CoInteractPipeline
from model.speech_features import clip_features, encode_audio
from model.text_encoder import encode_prompts
from model.vae import encode_pixels

CPU = torch.device("cpu")

HOI_PROMPT_PREFIX = (
    "a rendered video on a black background showing a 3D human body mesh interacting with an object. "
    "The scene features the human body represented as a polygonal mesh with visible surface geometry, "
    "alongside a 3D object. Following is the RGB description:"
)


@dataclass(frozen=True)
class TrainingClip:
    """One row of training data at the size of training. Pixels are uint8."""

    prompt: str
    frames: np.ndarray  # (80, H, W, 3)
    person: np.ndarray  # (H, W, 3)
    audio: np.ndarray  # (N,) float32, mono, 16 kHz
    audio_clip: int = 0  # which 80-frame window of the audio is this clip's
    motion: np.ndarray | None = None  # (73, H, W, 3), the frames before
    product: np.ndarray | None = None  # (H, W, 3), on black
    hoi: np.ndarray | None = None  # (80, H, W, 3)
    pose: np.ndarray | None = None  # (80, H, W, 3)
    labels: np.ndarray | None = None  # (20, rows, columns), see routing_labels
    objects: np.ndarray | None = None  # (20, rows, columns), see object_tokens
    product_scale: float = 1.0


@dataclass(frozen=True)
class EncodedClip:
    """The clip as normalised latents and features, without a batch dimension. Absent conditions are None."""

    target: torch.Tensor  # (16, 20, h, w) encoded behind the motion frames, or behind the person's photo
    motion: torch.Tensor | None  # (16, 19, h, w); None for a first clip
    person: torch.Tensor  # (16, 1, h, w)
    product: torch.Tensor | None  # (16, 1, h, w)
    hoi: torch.Tensor | None  # (16, 20, h, w)
    pose: torch.Tensor | None  # (16, 20, h, w)
    prompt_embeds: torch.Tensor  # (tokens, D), without the zero rows behind
    hoi_prompt_embeds: torch.Tensor  # (tokens, D)
    audio: torch.Tensor  # (layers, D, 80)
    labels: torch.Tensor | None  # (20, rows, columns) uint8
    objects: torch.Tensor | None = None  # (20, rows, columns) uint8
    product_scale: float = 1.0

    def save(self, path: Path) -> None:
        """Write a safetensors file in half precision."""
        tensors: dict[str, torch.Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                tensors[field.name] = (
                    value if value.dtype == torch.uint8 else value.to(torch.bfloat16)
                ).contiguous()
        tensors["product_scale"] = torch.tensor(self.product_scale)
        write_tensors(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        tensors = load_file(path)
        values: dict[str, Any] = {}
        for field in fields(cls):
            tensor = tensors.get(field.name)
            values[field.name] = tensor if tensor is None or tensor.dtype == torch.uint8 else tensor.float()
        values["product_scale"] = float(tensors["product_scale"])
        return cls(**values)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. It appears whole, also after a power cut, and whoever else writes it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(dict(tensors), partial)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)


class ClipEncoder:
    """Encodes clips with the frozen parts of a pipeline. Prompts are encoded once each."""

    def __init__(self, pipeline: CoInteractPipeline, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device
        self._prompts: dict[str, torch.Tensor] = {}

    def encode(self, clip: TrainingClip, *, after_motion: bool) -> EncodedClip:
        """Encode a clip as one that follows its motion frames, or as the first of a video.

        Motion and target are encoded jointly, as they will be decoded. For the same reason the target of a
        first clip is encoded after the person's photo. Both cover the same 80 frames. The official code's
        first clip starts one frame later, which puts the lips 40 ms off the sound.

        Raises:
            ValueError: `after_motion` for a clip that has no motion frames.
        """
        if not after_motion:
            motion, target = None, self._latents(np.concatenate([clip.person[None], clip.frames]))[:, 1:]
        elif clip.motion is None:
            raise ValueError("the clip has no motion frames")
        else:
            joint = self._latents(np.concatenate([clip.motion, clip.frames]))  # (16, 39, h, w)
            motion, target = joint[:, :MOTION_LATENT_FRAMES], joint[:, MOTION_LATENT_FRAMES:]
        audio = encode_audio(
            self._pipeline.audio_encoder, self._pipeline.feature_extractor, clip.audio, self._device
        )
        return EncodedClip(
            target=target,
            motion=motion,
            person=self._latents(clip.person[None]),
            product=None if clip.product is None else self._latents(clip.product[None]),
            hoi=self._side_stream(clip.hoi),
            pose=self._side_stream(clip.pose),
            prompt_embeds=self.prompt(clip.prompt),
            hoi_prompt_embeds=self.prompt(f"{HOI_PROMPT_PREFIX} {clip.prompt}"),
            audio=clip_features(audio, clip.audio_clip, CLIP_FRAMES)[0].float().cpu(),
            labels=None if clip.labels is None else torch.from_numpy(clip.labels),
            objects=None if clip.objects is None else torch.from_numpy(clip.objects),
            product_scale=clip.product_scale,
        )

    def prompt(self, prompt: str) -> torch.Tensor:
        """(tokens, D), rows of zeros left out."""
        if prompt not in self._prompts:
            pipeline = self._pipeline
            embeds = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, [prompt], self._device)[0]
            real = int(embeds.abs().amax(dim=1).nonzero().max()) + 1
            self._prompts[prompt] = embeds[:real].float().cpu()
        return self._prompts[prompt]

    def _side_stream(self, frames: np.ndarray | None) -> torch.Tensor | None:
        """Latents (16, 20, h, w) of 80 frames. The first is repeated, as the VAE codes one frame alone."""
        return None if frames is None else self._latents(np.concatenate([frames[:1], frames]))[:, 1:]

    def _latents(self, frames: np.ndarray) -> torch.Tensor:
        vae = self._pipeline.vae
        pixels = torch.tensor(frames).permute(3, 0, 1, 2)[None].to(self._device)
        return encode_pixels(vae, (pixels.float() / 127.5 - 1).to(vae.dtype))[0].float().cpu()
