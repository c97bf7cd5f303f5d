"""Where the weights of a checkpoint lie while it works."""

from __future__ import annotations

from enum import StrEnum


class MemoryMode(StrEnum):
    RESIDENT = "resident"
    """Everything on the GPU: fastest."""
    TEXT_OFFLOAD = "text-offload"
    """The text encoder streams through the GPU when a prompt is encoded, everything else stays: as fast while
    denoising.
    """
    OFFLOAD = "offload"
    """Transformer blocks too stream through the GPU, each fetched while the one before it computes."""
