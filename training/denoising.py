"""Measures a checkpoint by single denoising steps on true clips: errors by kind of token, router accuracy.

Two generated videos differ by chance as much as two trainings do. Here every checkpoint gets the same clips
with the same noise, so small differences between trainings become visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.kernels.router import FACE, HAND
from model.pipeline import CoInteractPipeline
from model.text_encoder import encode_prompts
from model.transformer import ConditioningInputs

from .clips import CPU, ClipEncoder
from .dataset import synthetic_clip
from .objective import LossWeights, routing_loss
from .synthetic import SyntheticVideo

TIMESTEPS = (250.0, 500.0, 750.0)
"""Timesteps of 0..1000. The experts take part in all of them."""
ROUTING_TIMESTEP = 500.0


@dataclass(frozen=True)
class DenoisingScores:
    """Means over a video's clips and noise levels. Errors: mean square of predicted minus true velocity."""

    denoising_face: float
    """Error on tokens that a face's box touches."""
    denoising_hands: float
    """Error on tokens that a hand's box touches."""
    denoising_product: float
    """Error on tokens that the product's box touches."""
    denoising_grip: float
    """Error on tokens that both a hand's and the product's box touch."""
    denoising_elsewhere: float
    """Error on all other tokens."""
    router_accuracy: float
    """Accuracy of the last block's router in the first clip, half noised.

    It is the mean of the accuracies on base, hand and face tokens.
    """


@torch.no_grad()
def denoising_scores(pipeline: CoInteractPipeline, video: SyntheticVideo) -> DenoisingScores:
    """Measure on every clip of a video: the first after the person's photo, the others after true motion.

    Raises:
        ValueError: the network cannot route, or nothing is held in the whole video.
    """
    encoder = ClipEncoder(pipeline, CPU)
    errors: dict[str, list[torch.Tensor]] = {}
    accuracy = 0.0
    for index, prompt in enumerate(video.prompts):
        clip = encoder.encode(synthetic_clip(video, index), after_motion=index > 0)
        if clip.labels is None or clip.objects is None:
            raise ValueError("the video has no boxes")
        noise = torch.randn(clip.target.shape, generator=torch.Generator().manual_seed(index))
        inputs = ConditioningInputs(
            person_latents=clip.person[None],
            encoder_hidden_states=encode_prompts(pipeline.text_encoder, pipeline.tokenizer, [prompt], CPU),
            audio_embeds=clip.audio[None],
            product_latents=None if clip.product is None else clip.product[None],
            motion_latents=None if clip.motion is None else clip.motion[None],
        )
        conditioning = pipeline.transformer.prepare_conditioning(
            inputs, num_latent_frames=clip.target.shape[1]
        )
        for timestep in TIMESTEPS:
            noisy = torch.lerp(clip.target, noise, timestep / 1000)[None]
            output = pipeline.transformer(noisy, timestep, conditioning, return_router_logits=True)
            square = (output.sample[0] - (noise - clip.target)).square().mean(dim=0)  # (20, h, w)
            per_token = square.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))  # as labels
            for kind, chosen in _kinds(clip.labels, clip.objects).items():
                errors.setdefault(kind, []).append(per_token[chosen])
            if index == 0 and timestep == ROUTING_TIMESTEP:
                if output.router_logits is None:
                    raise ValueError("the transformer returned no routing")
                accuracy = float(
                    routing_loss(output.router_logits, clip.labels.flatten()[None], LossWeights())[1]
                )
    means = {f"denoising_{kind}": float(torch.cat(parts).mean()) for kind, parts in errors.items()}
    return DenoisingScores(**means, router_accuracy=accuracy)


def _kinds(labels: torch.Tensor, objects: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tokens that each error is measured on; all (20, rows, columns)."""
    face, hands, product = labels == FACE, labels == HAND, objects > 0
    return {
        "face": face,
        "hands": hands,
        "product": product,
        "grip": hands & product,
        "elsewhere": ~(face | hands | product),
    }
