"""The Human-Aware mixture of experts on target tokens (paper section 3; official code).

The shared feed-forward is the base expert and stays outside: this module adds what hands and faces need.
"""

import torch
from diffusers.models.attention import FeedForward
from torch import nn

# From this timestep (of 1000) up, layout is still being decided and the experts keep out of it.
ROUTING_LIMIT = 900.0
BASE, HAND, FACE = 0, 1, 2


class HumanAwareMoE(nn.Module):
    """Soft routing of (B, N, D) tokens between base, hand and face experts."""

    def __init__(self, dim: int, expert_hidden_dim: int) -> None:
        super().__init__()
        self.router = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.SiLU(), nn.LayerNorm(dim // 2), nn.Linear(dim // 2, 3)
        )
        self.hand_expert = FeedForward(dim, inner_dim=expert_hidden_dim, activation_fn="gelu-approximate")
        self.face_expert = FeedForward(dim, inner_dim=expert_hidden_dim, activation_fn="gelu-approximate")

    def route(self, states: torch.Tensor) -> torch.Tensor:
        """Router logits (B, N, 3) for base, hand, face; the router never steers the features it reads."""
        logits: torch.Tensor = self.router(states.detach())
        return logits

    def forward(self, states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What the two experts add to the base feed-forward's output, (B, N, D)."""
        weights = logits.softmax(dim=-1).to(states.dtype)
        hand, face = weights[..., HAND : HAND + 1], weights[..., FACE : FACE + 1]
        added: torch.Tensor = torch.addcmul(self.hand_expert(states) * hand, self.face_expert(states), face)
        return added


def face_weight(logits: torch.Tensor) -> torch.Tensor:
    """The router's weight for the face expert, (B, N, 1), without gradient: a soft map of the face."""
    return logits.detach().softmax(dim=-1)[..., FACE : FACE + 1]
