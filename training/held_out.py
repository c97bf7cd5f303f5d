"""Clips that a run does not train on: their loss says what it has learned, and samples show it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from contract.params import GenerationParams
from contract.video import CLIP_FRAMES, SAMPLE_RATE
from model.checkpoints.card_file import read_card
from model.inputs import FramedInputs
from model.media.audio import Speech
from model.media.video import encode_clip, join_clips
from model.pipeline import CoInteractPipeline

from .clips import EncodedClip, TrainingClip
from .dataset import CsvDataset, Needs
from .objective import Batch
from .padded_prompts import pad_prompts
from .preparation import encode_table
from .recipe import TrainRecipe

MEASURED_LEVELS = (100, 350, 600, 850)
"""Noise levels at which each clip is measured, of 1000. They and the noise are the same in every save."""


@dataclass(frozen=True)
class Measured:
    """The mean loss of the video's stream over clips and noise levels, and the samples that were rendered."""

    loss: float
    samples: tuple[str, ...] = ()


class HeldOut:
    """The held-out table of a run."""

    def __init__(
        self,
        recipe: TrainRecipe,
        table: Path,
        pipeline: CoInteractPipeline,
        accelerator: Accelerator,
        most: int | None = None,
    ) -> None:
        """Check and encode the rows. Raises ValueError as training on them would."""
        self._recipe, self._pipeline, self._accelerator = recipe, pipeline, accelerator
        self._clips = CsvDataset(table, recipe.width, recipe.height, Needs())
        cache = encode_table(recipe, self._clips, pipeline, accelerator, most=most)
        self._encoded = [cache.load(path) for path in cache.after_motion or cache.first]

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> Measured:
        """Measure, and let the main process render samples, with the weights as they are now."""
        losses = []
        for number, clip in enumerate(self._encoded):
            batch = batch_of(clip).to(self._accelerator.device)
            for level in MEASURED_LEVELS:
                generator = torch.Generator().manual_seed(1000 * number + level)
                noise = torch.randn(batch.target.shape, generator=generator).to(self._accelerator.device)
                with self._accelerator.autocast():
                    losses.append(model(batch, torch.tensor([level]), noise, None).rgb.item())
        samples: Sequence[str] = ()
        if self._recipe.samples and self._accelerator.is_main_process:
            samples = self._render(self._recipe.output / "samples" / f"step-{step:08d}")
        self._accelerator.wait_for_everyone()
        return Measured(round(float(np.mean(losses)), 5), tuple(samples))

    def _render(self, folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        pipeline, place = self._pipeline, self._accelerator.device
        encoders = (pipeline.vae, pipeline.text_encoder, pipeline.audio_encoder)
        for part in encoders:
            part.to(place)
        written = []
        for number in range(min(self._recipe.samples, len(self._clips))):
            path = folder / f"{number + 1}.mp4"
            self._sample(self._clips[number], path)
            written.append(path.relative_to(self._recipe.output).as_posix())
        for part in encoders:
            part.to("cpu")
        return written

    def _sample(self, clip: TrainingClip, path: Path) -> None:
        """Render one clip as the service would, with the base's settings."""
        settings = read_card(self._recipe.base).defaults
        params = GenerationParams(
            prompts=(clip.prompt,),
            negative_prompt=settings.negative_prompt,
            width=self._recipe.width,
            height=self._recipe.height,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            flow_shift=settings.flow_shift,
            product_scale=clip.product_scale,
            seed=0,
            num_clips=1,
            num_frames=CLIP_FRAMES,
        )
        inputs = FramedInputs(clip.person, clip.product, clip.audio, clip.pose)
        with self._accelerator.autocast():
            (made,) = self._pipeline.run(inputs, params)
        with tempfile.TemporaryDirectory() as folder:
            silent = Path(folder) / "clip.mp4"
            encode_clip(made.frames, silent)
            join_clips([silent], Speech(clip.audio[None], SAMPLE_RATE), path)


def batch_of(clip: EncodedClip) -> Batch:
    """One clip as a batch with all its conditions, and no HOI stream, as it will be served."""

    def alone(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[None]

    return Batch(
        target=clip.target[None],
        person=clip.person[None],
        prompt_embeds=pad_prompts([clip.prompt_embeds]),
        audio=clip.audio[None],
        product=alone(clip.product),
        motion=alone(clip.motion),
        pose=alone(clip.pose),
        product_scale=clip.product_scale,
        clip_latent_frames=clip.target.shape[1],
    )
