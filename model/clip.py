"""One clip of a video, from encoded inputs to frames: what every rank of a worker does, or one device alone.

All that a clip needs is in its `ClipInputs`, so a rank that never saw the photos can render its part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler

from contract.job import Stage
from contract.params import GenerationParams
from contract.video import CLIP_LATENT_FRAMES
from model.memory.offload import Streams
from model.parallel.collectives import Purpose
from model.parallel.conditioning import share_tokens
from model.parallel.decoding import decode_frames
from model.parallel.ranks import ALONE, Arrangement, Ranks
from model.sampling import apply_guidance, set_schedule
from model.transformer import (
    CoInteractTransformer3DModel,
    Conditioning,
    ConditioningInputs,
    TransformerOutput,
)
from model.velocity import VelocityCurve

OnStep = Callable[[Stage, int], None]
"""Called with stage and finished steps, between steps. What it raises ends the clip."""


@dataclass(frozen=True)
class ClipInputs:
    """What a clip is rendered from. All tensors are on the device."""

    params: GenerationParams
    person_latents: torch.Tensor
    """(1, 16, 1, h, w) fp32, as are the next two."""
    product_latents: torch.Tensor | None
    motion_latents: torch.Tensor | None
    """(1, 16, 19, h, w), the end of the clip before."""
    pose_latents: torch.Tensor | None
    """(1, 16, 20, h, w)"""
    prompt_embeds: torch.Tensor
    """(1, 512, D)"""
    negative_prompt_embeds: torch.Tensor | None
    """None without guidance."""
    audio_embeds: torch.Tensor
    """(1, layers, D, T) features of the clip's speech."""
    noise: torch.Tensor
    """(1, 16, 20, h, w) fp32, where denoising starts."""


@dataclass(frozen=True)
class ClipRenderer:
    """The networks that render clips on `device`, together with other ranks or without."""

    transformer: CoInteractTransformer3DModel
    vae: AutoencoderKLWan
    scheduler: FlowMatchEulerDiscreteScheduler
    device: torch.device
    ranks: Ranks | None = None
    streams: Streams = field(default_factory=Streams)
    """What of the networks is in main memory."""

    @torch.no_grad()
    def render(self, inputs: ClipInputs, on_step: OnStep) -> tuple[torch.Tensor, np.ndarray | None]:
        """Render one clip. All ranks call this with the same inputs and step together.

        Returns:
            What was decoded, [person or motion | target], (1, 16, 1 + 20 or 19 + 20, h, w); and on rank 0 the
            clip's frames (80, H, W, 3) uint8.
        """
        params = inputs.params
        guided = inputs.negative_prompt_embeds is not None
        arrangement = ALONE[guided] if self.ranks is None else self.ranks.arrangement(guided)
        passes = self._prepare_passes(inputs, arrangement)
        target = self._denoise(inputs, passes, arrangement, on_step)
        del passes  # up to 2 GB that decoding can use, and 2 GB more where blocks stream
        self.streams.park()

        on_step(Stage.DECODING, params.num_inference_steps)
        shown_before = inputs.person_latents if inputs.motion_latents is None else inputs.motion_latents
        latents = torch.cat([shown_before, target], dim=2)
        frames = decode_frames(
            self.vae,
            latents,
            keep_from=shown_before.shape[2],
            tiled=params.parity or self.vae.use_tiling,
            after_chunk=lambda: on_step(Stage.DECODING, params.num_inference_steps),
            ranks=None if self.ranks is None else self.ranks.world,
        )
        return latents, frames

    def _prepare_passes(self, inputs: ClipInputs, arrangement: Arrangement) -> dict[str, Conditioning]:
        """All that the denoising steps of a clip share, of the passes that run here."""
        dtype = self.transformer.dtype

        def cast(latents: torch.Tensor | None) -> torch.Tensor | None:
            return None if latents is None else latents.to(dtype)

        same: Conditioning | None = None

        def prepare(prompt_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> Conditioning:
            nonlocal same
            whole = self.transformer.prepare_conditioning(
                ConditioningInputs(
                    person_latents=inputs.person_latents.to(dtype),
                    encoder_hidden_states=prompt_embeds.to(dtype),
                    audio_embeds=audio_embeds.to(dtype),
                    product_latents=cast(inputs.product_latents),
                    motion_latents=cast(inputs.motion_latents),
                    pose_latents=cast(inputs.pose_latents),
                    product_scale=inputs.params.product_scale,
                ),
                num_latent_frames=CLIP_LATENT_FRAMES,
                keep_key_values=self.streams.transformer is None,
            )
            if same is not None:
                whole = whole.sharing(same)
            same = whole
            return whole if arrangement.sequence is None else share_tokens(whole, arrangement.sequence)

        passes = {}
        if arrangement.conditional:
            passes["cond"] = prepare(inputs.prompt_embeds, inputs.audio_embeds)
        if arrangement.unconditional and inputs.negative_prompt_embeds is not None:
            silence = torch.zeros_like(inputs.audio_embeds)
            passes["uncond"] = prepare(inputs.negative_prompt_embeds, silence)
        return passes

    def _denoise(
        self,
        inputs: ClipInputs,
        passes: dict[str, Conditioning],
        arrangement: Arrangement,
        on_step: OnStep,
    ) -> torch.Tensor:
        """Target latents of the clip, (1, 16, 20, h, w) fp32. Every rank ends up with the same.

        Steps that `params` leaves out take an interpolated velocity.
        """
        params, latents = inputs.params, inputs.noise
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        set_schedule(scheduler, params.num_inference_steps, params.flow_shift, torch.device("cpu"))
        curve = VelocityCurve.of(params)
        on_step(Stage.DENOISING, 0)
        for step, timestep in enumerate(scheduler.timesteps):
            if params.computes(step):
                velocity = self._velocity(params, latents, timestep, passes, arrangement)
                latents = curve.corrected(latents, step, velocity)
            else:
                velocity = curve.foretell(step)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            on_step(Stage.DENOISING, step + 1)
        return latents

    def _velocity(
        self,
        params: GenerationParams,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        passes: dict[str, Conditioning],
        arrangement: Arrangement,
    ) -> torch.Tensor:
        """Guided velocity of the target latents, (1, 16, 20, h, w) fp32, from all ranks' passes."""
        predicted = [
            self._predict(name, latents, timestep, conditioning, params.audio_face_mask)
            for name, conditioning in passes.items()
        ]
        if arrangement.partners is not None:
            predicted = list(arrangement.partners.gather(predicted[0], Purpose.VELOCITY))
        if len(predicted) == 2:
            return apply_guidance(predicted[0], predicted[1], params.guidance_scale).float()
        return predicted[0].float()

    def _predict(
        self,
        name: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Conditioning,
        audio_face_mask: bool,
    ) -> torch.Tensor:
        """Velocity of the target latents (1, 16, 20, h, w); `name` keeps the passes' step caches apart."""
        noisy = latents.to(self.transformer.dtype)
        with self.transformer.cache_context(name):
            output: TransformerOutput = self.transformer(
                noisy, timestep, conditioning, audio_face_mask=audio_face_mask
            )
        return output.sample
