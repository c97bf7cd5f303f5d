"""How the work of one denoising step is spread over the ranks of a worker. Arithmetic only, no torch.

Guidance comes first: its two passes need nothing of each other but their results, so two groups of ranks
exchange one velocity per step. Within a group the tokens are shared (Ulysses), which costs an exchange in
every block.
"""

from __future__ import annotations

from typing import NamedTuple


class Degrees(NamedTuple):
    """Ranks = guidance × sequence."""

    guidance: int
    """2: the conditional and the unconditional pass run on groups of their own. 1: each rank is in both."""
    sequence: int
    """Ranks that share the tokens of a pass."""


def degrees(ranks: int, guided: bool) -> Degrees:
    """The best use of so many ranks. An odd number cannot be halved: it shares the tokens of both passes."""
    if ranks < 1:
        raise ValueError(f"a worker needs at least one device, not {ranks}")
    return Degrees(2, ranks // 2) if guided and ranks % 2 == 0 else Degrees(1, ranks)


def check_ranks(ranks: int, heads: int) -> None:
    """Raises ValueError if there are too many: each computes the attention of at least one head."""
    if ranks > heads:
        raise ValueError(f"{ranks} devices cannot share a network of {heads} attention heads; use {heads}")


def share(count: int, ranks: int, rank: int) -> range:
    """What one rank holds of `count` things in a row; the first ranks hold one more if they do not divide."""
    small, larger = divmod(count, ranks)
    start = rank * small + min(rank, larger)
    return range(start, start + small + (rank < larger))
