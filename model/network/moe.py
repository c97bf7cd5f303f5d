"""The Human-Aware mixture of experts on target tokens (paper section 3; official code).

The shared feed-forward is the base expert and is not part of this module, which adds the hand and face
experts.
"""

from typing import cast

import torch
from diffusers.models.attention import FeedForward
from torch import nn

from model.kernels.router import FACE, router_logits
from model.network.feed_forward import feed_forward, is_plain


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
        """Router logits (B, N, 3) for base, hand and face. The router never changes the features that it
        reads.
        """
        first, _, norm, last = cast(tuple[nn.Linear, nn.SiLU, nn.LayerNorm, nn.Linear], tuple(self.router))
        if not is_plain(last):
            whole: torch.Tensor = self.router(states.detach())
            return whole.float()
        hidden = first(states.detach())
        return router_logits(hidden, norm.weight, norm.bias, last.weight, last.bias, norm.eps)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of the hand expert and of the face expert, (B, N, D) each, before they are weighted."""
        return feed_forward(self.hand_expert, states), feed_forward(self.face_expert, states)


def face_weight(logits: torch.Tensor) -> torch.Tensor:
    """The router's weight for the face expert, (B, N, 1), without gradient: a soft map of the face."""
    return logits.detach().softmax(dim=-1)[..., FACE : FACE + 1]
