"""What ranks must agree on before one of them acts on it.

A step cache looks at how much the tokens have changed and skips blocks if it was little. A rank sees its own
tokens only; if it skipped blocks while another did not, that one would wait for its keys for ever. So a
decision is taken on sums over all tokens, which come out bit for bit equal on every rank.
"""

from __future__ import annotations

import torch

from model.parallel.collectives import Purpose
from model.parallel.tokens import TokenSplit


def summed(values: torch.Tensor, split: TokenSplit | None) -> torch.Tensor:
    """A few numbers, each summed over the ranks that share a pass; as they are without a split.

    Added in fp64 in the order of the ranks, by each of them: comparing the sums with a limit has one outcome.
    A mean over all tokens is `summed([sum, count])`, not the mean of means: ranks may hold one token more.
    """
    if split is None:
        return values.double()
    return split.group.gather(values.double(), Purpose.AGREEMENT).sum(dim=0)
