"""Attention with RMS-normalised queries and keys, on diffusers' backends.

Keys and values are computed apart from queries. So text and audio keys can be computed once per clip, the
last block can query from target tokens only, and the HOI stream can read the video's keys without being read.
"""

from contextlib import nullcontext

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.kernels.rms_norm import rms_norm
from model.kernels.rotary import RotaryTable, norm_rotary
from model.parallel.exchange import HeadExchange

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each (B, N, heads, head_dim)


class CoInteractAttnProcessor:
    """Ready queries, keys and values, on one of diffusers' backends; see `attention_backends`."""

    _attention_backend: AttentionBackendName | None = None
    torch_kernels: tuple[SDPBackend, ...] = ()
    """Of scaled dot-product attention, in order of preference; empty: in torch's own order."""

    def __call__(self, attn: "CoInteractAttention", query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        return self.attend(query, *key_value)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of (B, N, heads, head_dim) to keys and values (B, M, heads, head_dim)."""
        kernels = list(self.torch_kernels)
        with sdpa_kernel(kernels, set_priority=True) if kernels else nullcontext():
            attended: torch.Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attended


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
        self.eps = eps
        self.is_cross_attention = is_cross_attention
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.processor = CoInteractAttnProcessor()

    def query(self, states: torch.Tensor) -> torch.Tensor:
        """Cross-attention's queries of `states` (B, N, D), as (B, N, heads, head_dim)."""
        query: torch.Tensor = rms_norm(self.to_q(states), self.norm_q.weight, self.eps).unflatten(
            -1, (self.heads, -1)
        )
        return query

    def key_value(self, states: torch.Tensor) -> KeyValue:
        """Cross-attention's keys and values of `states` (B, N, D)."""
        key = rms_norm(self.to_k(states), self.norm_k.weight, self.eps).unflatten(-1, (self.heads, -1))
        return key, self.to_v(states).unflatten(-1, (self.heads, -1))

    def query_key_value(
        self,
        states: torch.Tensor,
        rotary_emb: RotaryTable,
        asking: int | None = None,
        exchange: HeadExchange | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """Self-attention's queries (of the first `asking` tokens), keys and values of `states` (B, N, D).

        With an `exchange` they are those of all ranks' tokens for this rank's heads.
        """
        # One after the other, so that only one of them is held unturned.
        key = self._turned(self.to_k(states), self.norm_k, rotary_emb)
        if exchange is None:
            query = self._turned(self.to_q(states[:, :asking]), self.norm_q, rotary_emb[:asking])
            return query, (key, self.to_v(states).unflatten(-1, (self.heads, -1)))
        # They travel while the queries are computed.
        keys = exchange.keys_to_heads(key)
        values = exchange.keys_to_heads(self.to_v(states).unflatten(-1, (self.heads, -1)))
        asked = self._turned(self.to_q(states[:, :asking]), self.norm_q, rotary_emb[:asking])
        return exchange.queries_to_heads(asked).wait(), (keys.wait(), values.wait())

    def _turned(self, states: torch.Tensor, norm: nn.RMSNorm, rotary_emb: RotaryTable) -> torch.Tensor:
        """Queries alone, or keys alone."""
        weight = norm.weight
        return norm_rotary(states[:, :0], states, weight, weight, rotary_emb, self.heads, self.eps)[1]

    def forward(
        self, query: torch.Tensor, key_value: KeyValue, exchange: HeadExchange | None = None
    ) -> torch.Tensor:
        """Attention of queries (B, N, heads, head_dim) to keys and values → (B, N, D), this rank's tokens."""
        return self.project(self.attend(query, key_value), exchange)

    def attend(self, query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        """The first half of `forward`: (B, N, heads, head_dim). What it was asked with can go then."""
        attended: torch.Tensor = self.processor(self, query, key_value)
        return attended.type_as(query)

    def project(self, attended: torch.Tensor, exchange: HeadExchange | None = None) -> torch.Tensor:
        """The second half."""
        if exchange is not None:
            attended = exchange.to_tokens(attended, self.heads)
        output: torch.Tensor = self.to_out[0](attended.flatten(2, 3))
        return output


def join(*parts: KeyValue) -> KeyValue:
    """Keys and values of several token groups, one after the other."""
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def part(key_value: KeyValue, tokens: slice) -> KeyValue:
    return key_value[0][:, tokens], key_value[1][:, tokens]
