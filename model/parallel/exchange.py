"""Ulysses attention: ranks hold some tokens of all heads, and for the attention all tokens of some heads
(DeepSpeed-Ulysses, arXiv 2309.14509).

Neither tokens nor heads need to divide by the ranks: everybody knows how many everybody holds, so nothing is
padded and no sizes are exchanged. Attention does not care for the order of its tokens, so those of one rank
simply follow those of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.parallel.arrangement import share
from model.parallel.collectives import Group, Pending, Purpose


@dataclass(frozen=True)
class Arriving:
    """Heads of all tokens that are under way; `wait` gives (B, N, own heads, head_dim)."""

    _pending: Pending
    _tokens: tuple[int, ...]
    _batch: int
    _head_shape: tuple[int, int]

    def wait(self) -> torch.Tensor:
        flat = self._pending.wait()
        heads, width = self._head_shape
        if self._batch == 1:
            return flat.view(1, -1, heads, width)
        sizes = [self._batch * n * heads * width for n in self._tokens]
        parts = zip(flat.split(sizes), self._tokens, strict=True)
        return torch.cat([part.view(self._batch, n, heads, width) for part, n in parts], dim=1)


@dataclass(frozen=True)
class HeadExchange:
    """The exchanges around one attention: tokens to heads before it, heads to tokens behind it."""

    group: Group
    queries: tuple[int, ...]
    """Tokens that each rank asks for."""
    keys: tuple[int, ...]
    """Tokens whose keys and values each rank holds."""

    def queries_to_heads(self, states: torch.Tensor) -> Arriving:
        """Queries (B, n, heads, head_dim) of this rank's tokens → all tokens of this rank's heads."""
        return self._to_heads(states, self.queries)

    def keys_to_heads(self, states: torch.Tensor) -> Arriving:
        """The same for keys, or for values."""
        return self._to_heads(states, self.keys)

    def _to_heads(self, states: torch.Tensor, tokens: tuple[int, ...]) -> Arriving:
        batch, own, heads, width = states.shape
        if own != tokens[self.group.index]:
            raise ValueError(f"this rank was to hold {tokens[self.group.index]} tokens, not {own}")
        per_rank = self._heads(heads)
        sent = [batch * own * n * width for n in per_rank]
        packed = states.new_empty(states.numel())
        for place, part in zip(packed.split(sent), states.split(per_rank, dim=2), strict=True):
            place.view(part.shape).copy_(part)
        mine = per_rank[self.group.index]
        received = [batch * n * mine * width for n in tokens]
        pending = self.group.exchange(packed, sent, received, Purpose.ATTENTION)
        return Arriving(pending, tokens, batch, (mine, width))

    def to_tokens(self, attended: torch.Tensor, heads: int) -> torch.Tensor:
        """Attention of this rank's heads (B, N, own heads, head_dim) → all `heads` of its tokens."""
        batch, _, mine, width = attended.shape
        per_rank = self._heads(heads)
        sent = [batch * n * mine * width for n in self.queries]
        if batch == 1:  # already in the order of the ranks
            packed = attended.reshape(-1)
        else:
            packed = torch.cat([part.reshape(-1) for part in attended.split(self.queries, dim=1)])
        own = self.queries[self.group.index]
        received = [batch * own * n * width for n in per_rank]
        flat = self.group.exchange(packed, sent, received, Purpose.ATTENTION).wait()
        parts = zip(flat.split(received), per_rank, strict=True)
        return torch.cat([part.view(batch, own, n, width) for part, n in parts], dim=2)

    def _heads(self, heads: int) -> list[int]:
        if heads < self.group.size:
            raise ValueError(f"{self.group.size} ranks cannot share {heads} attention heads")
        return [len(share(heads, self.group.size, rank)) for rank in range(self.group.size)]
