"""The tokens that a rank holds.

Of the target it holds the same positions in every latent frame. Speech, which acts frame by frame, therefore
needs no exchange, and every rank has a share of the tokens that experts work on. Of person, product and
motion it holds one run each. Rotary angles go with their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from model.network.block import TokenLayout
from model.parallel.arrangement import share
from model.parallel.collectives import Group, Purpose
from model.parallel.exchange import HeadExchange


@dataclass(frozen=True)
class TokenSplit:
    """A clip's tokens, shared by the ranks of a group."""

    group: Group
    whole: TokenLayout

    @property
    def layout(self) -> TokenLayout:
        """This rank's tokens."""
        return self._layout(self.group.index)

    def _layout(self, rank: int) -> TokenLayout:
        def held(count: int) -> int:
            return len(share(count, self.group.size, rank))

        frames, rows, columns = self.whole.grid
        return replace(
            self.whole,
            grid=(frames, 1, held(rows * columns)),
            person=held(self.whole.person),
            product=held(self.whole.product),
            motion=held(self.whole.motion),
        )

    def exchange(self, target_queries_only: bool) -> HeadExchange:
        """The exchange around a block's self-attention."""
        layouts = [self._layout(rank) for rank in range(self.group.size)]
        videos = tuple(layout.video for layout in layouts)
        targets = tuple(layout.target for layout in layouts)
        return HeadExchange(self.group, targets if target_queries_only else videos, videos)

    def gather_target(self, states: torch.Tensor) -> torch.Tensor:
        """Join every rank's results for its target tokens (B, n, C) → all target tokens, in their order."""
        frames, rows, columns = self.whole.grid
        shares = [share(rows * columns, self.group.size, rank) for rank in range(self.group.size)]
        grid = states.unflatten(1, (frames, -1))
        padded = torch.nn.functional.pad(grid, (0, 0, 0, len(shares[0]) - grid.shape[2]))
        gathered = self.group.gather(padded, Purpose.VELOCITY).unbind(0)
        parts = zip(gathered, shares, strict=True)
        return torch.cat([part[:, :, : len(held)] for part, held in parts], dim=2).flatten(1, 2)


def held_by(split: TokenSplit | None, tokens: torch.Tensor, frames: int = 1, dim: int = 1) -> torch.Tensor:
    """This rank's share of `tokens`, which run frame by frame along `dim`. Without a split, all of them."""
    if split is None:
        return tokens
    grid = tokens.unflatten(dim, (frames, -1))
    held = share(grid.shape[dim + 1], split.group.size, split.group.index)
    part: torch.Tensor = grid.narrow(dim + 1, held.start, len(held)).flatten(dim, dim + 1)
    return part
