"""The co-generation objective: flow matching of both streams, and a supervised router (paper, section 3).

L = L_rgb + λh · L_hoi + η · L_route. The targets are velocities: noise - clean. `LossWeights` has λh and η.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from model.kernels.router import BASE
from model.network.block import Visibility
from model.training_schedule import TrainingSchedule
from model.transformer import CoInteractTransformer3DModel, Conditioning, ConditioningInputs


@dataclass(frozen=True)
class LossWeights:
    """The paper's λh (`hoi`; the official code trains with 0.5) and η (`routing`), and weights of tokens."""

    hoi: float = 1.0
    routing: float = 0.05
    hand_and_face: float = 10.0
    base: float = 1.0
    details: float = 1.0
    """How much more the video's error weighs on face, hand and object tokens than elsewhere (officially 1).

    Lips and product are a few tokens of a clip. A short training would hardly learn them at weight 1.
    """


@dataclass(frozen=True)
class Batch:
    """Clean clips that all have the same conditions.

    A target shorter than the clip is a window of it that begins at latent frame `start`.
    """

    target: torch.Tensor  # (B, 16, F, h, w)
    person: torch.Tensor  # (B, 16, 1, h, w)
    prompt_embeds: torch.Tensor  # (B, L, D)
    audio: torch.Tensor  # (B, layers, D, 80), always of the whole clip
    product: torch.Tensor | None = None  # (B, 16, 1, h, w)
    motion: torch.Tensor | None = None  # (B, 16, ≤19, h, w)
    pose: torch.Tensor | None = None  # (B, 16, 20, h, w), always of the whole clip
    hoi: torch.Tensor | None = None  # (B, 16, F, h, w)
    hoi_prompt_embeds: torch.Tensor | None = None  # (B, L', D)
    labels: torch.Tensor | None = None  # (B, F, rows, columns) uint8
    objects: torch.Tensor | None = None  # (B, F, rows, columns) uint8
    product_scale: float = 1.0
    start: int = 0
    clip_latent_frames: int = 20

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Losses:
    """Means over the batch. Training minimises `total`.

    The accuracy is that of the last block's router. It has no gradient.
    """

    total: torch.Tensor
    rgb: torch.Tensor
    hoi: torch.Tensor | None = None
    routing: torch.Tensor | None = None
    routing_accuracy: torch.Tensor | None = None


class CoGeneration(nn.Module):
    """A transformer with its objective, as one module that accelerate can wrap for any number of devices."""

    def __init__(
        self,
        transformer: CoInteractTransformer3DModel,
        schedule: TrainingSchedule,
        weights: LossWeights | None = None,
        visibility: Visibility = "mutual",
        audio_face_mask: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.visibility: Visibility = visibility
        self._schedule = schedule
        self._weights = weights or LossWeights()
        self._audio_face_mask = audio_face_mask

    def forward(
        self, batch: Batch, levels: torch.Tensor, noise: torch.Tensor, hoi_noise: torch.Tensor | None = None
    ) -> Losses:
        """Losses of one batch.

        Args:
            levels: (B,) indices into the schedule, int64 on the CPU.
            noise, hoi_noise: standard normal, shaped as the two streams' latents.
        """
        timesteps = self._schedule.timesteps[levels]
        sigmas = self._schedule.sigmas[levels].to(batch.target).view(-1, 1, 1, 1, 1)
        importance = self._schedule.weights[levels].to(batch.target.device)
        noisy = torch.lerp(batch.target, noise, sigmas)
        noisy_hoi = None
        if batch.hoi is not None:
            if hoi_noise is None:
                raise ValueError("a batch with an HOI stream needs hoi_noise")
            noisy_hoi = torch.lerp(batch.hoi, hoi_noise, sigmas)
        dtype = noise.dtype
        output = self.transformer(
            noisy.to(dtype),
            timesteps,
            self._conditioning(batch),
            hoi_latents=None if noisy_hoi is None else noisy_hoi.to(dtype),
            hoi_visibility=self.visibility,
            audio_face_mask=self._audio_face_mask,
            return_router_logits=batch.labels is not None and self._weights.routing > 0,
        )
        rgb = _weighted_mse(output.sample, noise - batch.target, importance, self._detail_weights(batch))
        total, hoi = rgb, None
        if batch.hoi is not None and output.hoi_sample is not None and hoi_noise is not None:
            hoi = _weighted_mse(output.hoi_sample, hoi_noise - batch.hoi, importance)
            total = total + self._weights.hoi * hoi
        if batch.labels is None or output.router_logits is None:
            return Losses(total, rgb, hoi)
        routing, accuracy = routing_loss(output.router_logits, batch.labels.flatten(1), self._weights)
        return Losses(total + self._weights.routing * routing, rgb, hoi, routing, accuracy)

    def _detail_weights(self, batch: Batch) -> torch.Tensor | None:
        """Weights (B, 1, F, h, w) with mean 1, or None if all tokens weigh the same."""
        if batch.labels is None or self._weights.details == 1:
            return None
        details = batch.labels != BASE  # (B, F, rows, columns)
        if batch.objects is not None:
            details = details | (batch.objects > 0)
        weights = torch.where(details, self._weights.details, 1.0)
        weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
        return weights.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, None]

    def _conditioning(self, batch: Batch) -> Conditioning:
        inputs = ConditioningInputs(
            person_latents=batch.person,
            encoder_hidden_states=batch.prompt_embeds,
            audio_embeds=batch.audio,
            product_latents=batch.product,
            motion_latents=batch.motion,
            pose_latents=batch.pose,
            product_scale=batch.product_scale,
            hoi_encoder_hidden_states=batch.hoi_prompt_embeds if batch.hoi is not None else None,
        )
        whole = self.transformer.prepare_conditioning(inputs, num_latent_frames=batch.clip_latent_frames)
        frames = batch.target.shape[2]
        if frames == batch.clip_latent_frames:
            return whole
        return time_window(whole, batch.start, frames)


def time_window(conditioning: Conditioning, start: int, frames: int) -> Conditioning:
    """Cut a clip's conditioning to `frames` latent frames from `start`. They keep their positions in time.

    A step on a window costs a fraction of a step on a whole clip, so a short training sees more people and
    products.
    """
    layout = conditioning.layout
    _, rows, columns = layout.grid
    per_frame = rows * columns
    window = slice(start * per_frame, (start + frames) * per_frame)

    def cut(table: torch.Tensor) -> torch.Tensor:
        parts = [table[window], table[layout.target : layout.video]]
        if layout.hoi:
            parts.append(table[layout.video :][window])
        return torch.cat(parts)

    bias = conditioning.target_bias
    audio = conditioning.audio
    return replace(
        conditioning,
        latent_size=(frames, *conditioning.latent_size[1:]),
        layout=replace(layout, grid=(frames, rows, columns), hoi=frames * per_frame if layout.hoi else 0),
        rotary_emb=cut(conditioning.rotary_emb),
        target_bias=bias if bias.shape[1] == 1 else bias[:, window],
        audio=replace(
            audio,
            local=audio.local[:, start : start + frames],
            overall=audio.overall[:, start : start + frames],
        ),
    )


def routing_loss(
    logits: tuple[torch.Tensor, ...], labels: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy averaged over the routers of all blocks, and the accuracy of the last one.

    Args:
        logits: per block (B, N, 3).
        labels: (B, N) expert per token.

    The accuracy is measured on base, hand and face tokens apart, and averaged over the kinds that occur. A
    router that always says "base" therefore gets 1/3, although about 4 in 5 tokens are base.
    """
    labels = labels.long()
    importance = torch.where(labels == BASE, weights.base, weights.hand_and_face).to(logits[0].device)
    losses = [
        (
            F.cross_entropy(block.float().flatten(0, 1), labels.flatten(), reduction="none")
            * importance.flatten()
        ).mean()
        for block in logits
    ]
    chosen = logits[-1].detach().argmax(dim=-1)
    hits = [(chosen[labels == k] == k).float().mean() for k in labels.unique().tolist()]
    return torch.stack(losses).mean(), torch.stack(hits).mean()


def _weighted_mse(
    predicted: torch.Tensor,
    wanted: torch.Tensor,
    importance: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    error = (predicted.float() - wanted.float()).pow(2)  # (B, 16, F, h, w)
    if weights is not None:
        error = error * weights
    return (error.flatten(1).mean(dim=1) * importance).mean()
