"""The network's two plain inputs: timesteps and prompt embeddings, brought to the model's width (Wan2.2)."""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from torch import nn


def timestep_features(timesteps: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoidal embedding (B, channels), cosines first; float64 inside because timesteps reach 1000."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = torch.outer(timesteps.double(), 10000.0**-exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class TimeTextEmbedding(nn.Module):
    """Timesteps → modulation; prompt embeddings → model width."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")

    def forward(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) → temb (B, D) and modulation (B, 6, D)."""
        weight_dtype = self.time_embedder.linear_1.weight.dtype
        temb = self.time_embedder(timestep_features(timesteps, self.freq_dim).to(weight_dtype))
        projected = self.time_proj(F.silu(temb).to(self.time_proj.weight.dtype))
        return temb, projected.unflatten(-1, (6, -1))
