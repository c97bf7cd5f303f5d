"""Ulysses attention (DeepSpeed-Ulysses, arXiv 2309.14509).

A rank holds some of the tokens, with all heads. For attention it gets all tokens, with some of the heads.
Neither tokens nor heads must be divisible by the number of ranks. Every rank knows how many each one holds,
so nothing is padded and no sizes are exchanged. Attention does not depend on the order of tokens, so each
rank's tokens follow those of the rank before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.parallel.arrangement import share
from model.parallel.collectives import Group, Pending, Purpose


@dataclass(frozen=True)
class Arriving:
    """All tokens of this rank's heads, on their way. `wait` returns (B, N, own heads, head_dim)."""

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
    """The exchanges around one attention: tokens to heads before it, heads to tokens after it."""

    group: Group
    queries: tuple[int, ...]
    """The number of tokens whose queries each rank holds."""
    keys: tuple[int, ...]
    """The number of tokens whose keys and values each rank holds."""

    def queries_to_heads(self, states: torch.Tensor) -> Arriving:
        """Queries (B, n, heads, head_dim) of this rank's tokens → all tokens of this rank's heads."""
        return self._to_heads(states, self.queries)

    def keys_to_heads(self, states: torch.Tensor) -> Arriving:
        """The same for keys or values."""
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
        if batch == 1:  # memory is already in rank order
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
