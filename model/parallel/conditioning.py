"""A clip's conditioning on one of several ranks."""

from __future__ import annotations

from dataclasses import replace

import torch

from model.parallel.collectives import Group
from model.parallel.tokens import TokenSplit, held_by
from model.transformer import Conditioning


def share_tokens(conditioning: Conditioning, ranks: Group) -> Conditioning:
    """Cut `conditioning` to this rank's tokens. Prompt and speech stay whole.

    Every rank of the group calls the transformer with its part and with the same latents. Each gets the whole
    prediction.

    Raises:
        ValueError: there are HOI tokens. Only training has them, and exchanges have no gradient.
    """
    whole = conditioning.layout
    if whole.hoi:
        raise ValueError("the HOI stream is for training, which does not share tokens among ranks")
    split = TokenSplit(ranks, whole)
    counts = [whole.person, whole.product, whole.motion]

    def held(tokens: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of person, product and motion, which follow one another."""
        return torch.cat([held_by(split, kind, dim=dim) for kind in tokens.split(counts, dim)], dim)

    def held_rows(table: torch.Tensor) -> torch.Tensor:
        target, references = table.split([whole.target, whole.video - whole.target])
        return torch.cat([held_by(split, target, whole.grid[0], dim=0), held(references, 0)])

    bias = conditioning.target_bias
    return replace(
        conditioning,
        layout=split.layout,
        rotary_emb=held_rows(conditioning.rotary_emb),
        target_bias=bias if bias.shape[1] == 1 else held_by(split, bias, whole.grid[0]),
        reference_tokens=held(conditioning.reference_tokens, 1),
        split=split,
    )
