"""Attention with RMS-normalised queries and keys, on diffusers' backends.

Keys and values are computed apart from queries. That is what lets text and audio keys be computed once per
clip, the last block query from target tokens only, and the HOI stream read the video's keys and no more.
"""

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from model.network.rope import RotaryTable, apply_rotary
from model.parallel.exchange import HeadExchange

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each (B, N, heads, head_dim)


class CoInteractAttnProcessor:
    """Queries against ready keys and values; diffusers sets the backend on it."""

    _attention_backend = None

    def __call__(
        self,
        attn: "CoInteractAttention",
        hidden_states: torch.Tensor,  # (B, N, D)
        key_value: KeyValue,
        rotary_emb: RotaryTable | None = None,
        exchange: HeadExchange | None = None,
    ) -> torch.Tensor:
        key, value = key_value
        if exchange is not None:  # on their way while the queries are computed
            arriving = exchange.keys_to_heads(key), exchange.keys_to_heads(value)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(-1, (attn.heads, -1))
        if rotary_emb is not None:
            query = apply_rotary(query, rotary_emb)
        if exchange is not None:
            query = exchange.queries_to_heads(query).wait()
            key, value = (states.wait() for states in arriving)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        if exchange is not None:
            attended = exchange.to_tokens(attended, attn.heads)
        output: torch.Tensor = attn.to_out[0](attended.flatten(2, 3).type_as(hidden_states))
        return output


class CoInteractAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention over width D with full-width RMS norm on queries and keys.

    Source: Wan 2.2 and the official CoInteract code; parameter names are diffusers'.
    """

    _default_processor_cls = CoInteractAttnProcessor
    _available_processors = (CoInteractAttnProcessor,)
    _supports_qkv_fusion = False
    processor: CoInteractAttnProcessor

    def __init__(self, dim: int, heads: int, eps: float, is_cross_attention: bool) -> None:
        super().__init__()
        self.heads = heads
        self.is_cross_attention = is_cross_attention
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.processor = CoInteractAttnProcessor()

    def key_value(self, states: torch.Tensor, rotary_emb: RotaryTable | None = None) -> KeyValue:
        """Keys and values of `states` (B, N, D)."""
        key = self.norm_k(self.to_k(states)).unflatten(-1, (self.heads, -1))
        value = self.to_v(states).unflatten(-1, (self.heads, -1))
        if rotary_emb is not None:
            key = apply_rotary(key, rotary_emb)
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value: KeyValue,
        rotary_emb: RotaryTable | None = None,
        exchange: HeadExchange | None = None,
    ) -> torch.Tensor:
        """Attention of `hidden_states` (B, N, D), which an `exchange` shares with other ranks, as it does
        `key_value`.
        """
        output: torch.Tensor = self.processor(self, hidden_states, key_value, rotary_emb, exchange)
        return output


def join(*parts: KeyValue) -> KeyValue:
    """Keys and values of several token groups, one after the other."""
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def part(key_value: KeyValue, tokens: slice) -> KeyValue:
    return key_value[0][:, tokens], key_value[1][:, tokens]
