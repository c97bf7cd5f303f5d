"""Small networks and batches for the training tests."""

from dataclasses import replace

import torch

from model.transformer import CoInteractTransformer3DModel
from training.objective import Batch

H, W, FRAMES, TEXT, AUDIO, LAYERS = 8, 8, 5, 16, 8, 2


def small_transformer(hoi_branch: bool = True, seed: int = 0) -> CoInteractTransformer3DModel:
    torch.manual_seed(seed)
    return CoInteractTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=48,
        num_layers=3,
        text_dim=TEXT,
        audio_dim=AUDIO,
        num_audio_layers=LAYERS,
        audio_inject_layers=(0, 2),
        expert_hidden_dim=8,
        hoi_branch=hoi_branch,
    )


def small_batch(batch: int = 2, frames: int = FRAMES, seed: int = 0, **changes: object) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    made = Batch(
        target=noise(batch, 16, frames, H, W),
        person=noise(batch, 16, 1, H, W),
        product=noise(batch, 16, 1, H, W),
        motion=noise(batch, 16, 19, H, W),
        hoi=noise(batch, 16, frames, H, W),
        prompt_embeds=noise(batch, 9, TEXT),
        hoi_prompt_embeds=noise(batch, 12, TEXT),
        audio=noise(batch, LAYERS, AUDIO, 80),
        labels=torch.randint(0, 3, (batch, frames, H // 2, W // 2), generator=generator).byte(),
        clip_latent_frames=20,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def noises(batch: Batch, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch.target.shape, generator=generator), torch.randn(
        batch.target.shape, generator=generator
    )
