"""How the ranks of a worker share one denoising step. This is arithmetic only, without torch.

First they share guidance. Its two passes need only each other's result, so two groups of ranks exchange one
velocity per step. The ranks of a group share the tokens of their pass (Ulysses), which costs an exchange in
every block.
"""

from __future__ import annotations

from typing import NamedTuple


class Degrees(NamedTuple):
    """The number of ranks is guidance × sequence."""

    guidance: int
    """2: one group of ranks runs the conditional pass, another the unconditional one. 1: all run both."""
    sequence: int
    """The number of ranks that share the tokens of a pass."""


def degrees(ranks: int, guided: bool) -> Degrees:
    """The best use of `ranks`. An odd number cannot be halved, so it shares the tokens of both passes."""
    if ranks < 1:
        raise ValueError(f"a worker needs at least one device, not {ranks}")
    return Degrees(2, ranks // 2) if guided and ranks % 2 == 0 else Degrees(1, ranks)


def check_ranks(ranks: int, heads: int) -> None:
    """Raise ValueError if there are more ranks than heads: each rank needs a head to compute."""
    if ranks > heads:
        raise ValueError(f"{ranks} devices cannot share a network of {heads} attention heads; use {heads}")


def share(count: int, ranks: int, rank: int) -> range:
    """The part of `count` things in a row that one rank holds. The first ranks take the remainder."""
    small, larger = divmod(count, ranks)
    start = rank * small + min(rank, larger)
    return range(start, start + small + (rank < larger))
