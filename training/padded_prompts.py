"""Prompts of 512 rows at the cost of their real tokens, exactly.

All rows after a prompt's end are the same zero vector, so attention over them equals attention over one of
them with log(count) added to its score. Without this, short training sequences spend more on padding than on
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin

from contract.prompts import PROMPT_TOKENS
from model.network.attention import CoInteractAttention, KeyValue
from model.network.block import CoInteractBlock
from model.transformer import CoInteractTransformer3DModel


def pad_prompts(prompts: Sequence[torch.Tensor], rows: int | None = None) -> torch.Tensor:
    """Embeds (tokens, D) each → (B, rows, D) with zeros behind.

    `rows` defaults to one more than the longest prompt has tokens; the last row then stands for all the
    padding.
    """
    rows = rows or min(PROMPT_TOKENS, max(len(prompt) for prompt in prompts) + 1)
    return torch.stack([F.pad(prompt, (0, 0, 0, rows - len(prompt))) for prompt in prompts])


class ShortPromptProcessor:
    """Cross-attention to prompts cut by `pad_prompts`: the last row counts for the rest of the 512."""

    def __call__(
        self,
        attn: CoInteractAttention,
        query: torch.Tensor,  # (B, N, heads, head_dim)
        key_value: KeyValue,
    ) -> torch.Tensor:
        query, key, value = (states.transpose(1, 2) for states in (query, *key_value))
        rows = key.shape[2]
        bias = torch.zeros(1, 1, 1, rows, dtype=query.dtype, device=query.device)
        bias[..., -1] = math.log(PROMPT_TOKENS - rows + 1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


def use_short_prompts(transformer: CoInteractTransformer3DModel) -> None:
    """Let every prompt attention of `transformer` read prompts cut by `pad_prompts`."""
    for block in cast(list[CoInteractBlock], list(transformer.blocks)):
        attention = cast(AttentionModuleMixin, block.attn2)
        attention.set_processor(ShortPromptProcessor())
