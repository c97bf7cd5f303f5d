"""Where the weights of a checkpoint are kept while it renders."""

from __future__ import annotations

from enum import StrEnum


class MemoryMode(StrEnum):
    RESIDENT = "resident"
    """Everything on the GPU: fastest."""
    TEXT_OFFLOAD = "text-offload"
    """The text encoder streams through the GPU when it encodes a prompt; everything else stays on it.
    Denoising is as fast as with everything on the GPU.
    """
    OFFLOAD = "offload"
    """The transformer's blocks stream through the GPU too, each fetched while the one before it computes."""

    @property
    def next(self) -> MemoryMode | None:
        """The mode that needs less of the GPU's memory; None if there is none."""
        modes = list(MemoryMode)
        following = modes.index(self) + 1
        return modes[following] if following < len(modes) else None
