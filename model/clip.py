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
from model.kernels.router import FACE, HAND
from model.memory.offload import Streams
from model.parallel.collectives import Purpose
from model.parallel.conditioning import share_tokens
from model.parallel.decoding import BANDS_IN_TURN, decode_frames
from model.parallel.ranks import ALONE, Arrangement, Ranks
from model.sampling import apply_guidance, set_schedule
from model.transformer import (
    CoInteractTransformer3DModel,
    Conditioning,
    ConditioningInputs,
    TransformerOutput,
)
from model.velocity import VelocityCurve

CONDITIONAL, UNCONDITIONAL = "cond", "uncond"
"""The passes of a step, by the names of their step caches."""

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
class Rendered:
    """One clip as it was rendered."""

    latents: torch.Tensor
    """What was decoded, [person or motion | target], (1, 16, 1 + 20 or 19 + 20, h, w)."""
    frames: np.ndarray | None
    """(80, H, W, 3) uint8; None on all ranks but 0."""
    routes: np.ndarray | None
    """(20, rows, columns, 2) uint8: how much the last block's router sent each token to the experts for hands
    and for faces in the last step, 255 for all of it. None if that was not asked for, and on ranks that run
    the unconditional pass only.
    """


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
    def render(self, inputs: ClipInputs, on_step: OnStep) -> Rendered:
        """Render one clip. All ranks call this with the same inputs and step together."""
        params = inputs.params
        guided = inputs.negative_prompt_embeds is not None
        arrangement = ALONE[guided] if self.ranks is None else self.ranks.arrangement(guided)
        passes = self._prepare_passes(inputs, arrangement)
        target, routes = self._denoise(inputs, passes, arrangement, on_step)
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
            in_turn=1 if self.transformer.part_tokens is None else BANDS_IN_TURN,
        )
        return Rendered(latents, frames, routes)

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
            passes[CONDITIONAL] = prepare(inputs.prompt_embeds, inputs.audio_embeds)
        if arrangement.unconditional and inputs.negative_prompt_embeds is not None:
            silence = torch.zeros_like(inputs.audio_embeds)
            passes[UNCONDITIONAL] = prepare(inputs.negative_prompt_embeds, silence)
        return passes

    def _denoise(
        self,
        inputs: ClipInputs,
        passes: dict[str, Conditioning],
        arrangement: Arrangement,
        on_step: OnStep,
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Target latents of the clip, (1, 16, 20, h, w) fp32, and its routes, see `Rendered`. Every rank ends
        up with the same latents.

        Steps that `params` leaves out take an interpolated velocity.
        """
        params, latents, routes = inputs.params, inputs.noise, None
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        set_schedule(scheduler, params.num_inference_steps, params.flow_shift, torch.device("cpu"))
        curve = VelocityCurve.of(params)
        last = max(step for step in range(params.num_inference_steps) if params.computes(step))
        on_step(Stage.DENOISING, 0)
        for step, timestep in enumerate(scheduler.timesteps):
            if params.computes(step):
                outputs = [
                    self._predict(name, latents, timestep, conditioning, params, step == last)
                    for name, conditioning in passes.items()
                ]
                if step == last and outputs[0].router_logits is not None:
                    routes = _routes(outputs[0].router_logits[-1], outputs[0].sample)
                velocity = self._velocity(params, [output.sample for output in outputs], arrangement)
                latents = curve.corrected(latents, step, velocity)
            else:
                velocity = curve.foretell(step)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            on_step(Stage.DENOISING, step + 1)
        return latents, routes

    def _velocity(
        self, params: GenerationParams, predicted: list[torch.Tensor], arrangement: Arrangement
    ) -> torch.Tensor:
        """Guided velocity of the target latents, (1, 16, 20, h, w) fp32, from all ranks' passes."""
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
        params: GenerationParams,
        is_last: bool,
    ) -> TransformerOutput:
        """Velocity of the target latents (1, 16, 20, h, w); `name` keeps the passes' step caches apart."""
        noisy = latents.to(self.transformer.dtype)
        with self.transformer.cache_context(name):
            output: TransformerOutput = self.transformer(
                noisy,
                timestep,
                conditioning,
                audio_face_mask=params.audio_face_mask,
                return_router_logits=params.router_maps and is_last and name == CONDITIONAL,
            )
        return output


def _routes(logits: torch.Tensor, sample: torch.Tensor) -> np.ndarray:
    """Router logits (1, N, 3) of latents like `sample` (1, 16, F, h, w) → `Rendered.routes`."""
    frames, height, width = sample.shape[2:]
    weights = logits[0].softmax(dim=-1)[:, [HAND, FACE]]
    grid = weights.unflatten(0, (frames, height // 2, width // 2))
    levels: np.ndarray = (grid * 255).round().to(torch.uint8).cpu().numpy()
    return levels
