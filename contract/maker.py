"""What an attempt is rendered with. Who wants the same bits again must have the same."""

from __future__ import annotations

from pydantic import Field

from contract.frozen import Frozen
from contract.memory import MemoryMode


class Maker(Frozen):
    """Program, libraries, weights and device of an attempt."""

    version: str
    """Of this program."""
    libraries: dict[str, str] = Field(default_factory=dict)
    """Versions of what computes, by package."""
    device: str
    """Its model, such as "NVIDIA H200", or "cpu"."""
    ranks: int = 1
    """Devices that render together."""
    memory_mode: MemoryMode | None = None
    fp8_compute: bool = False
    """Whether it multiplies in 8 bits what the checkpoint stores in 8 bits."""
    checkpoint_sha256: str | None = None
    """SHA-256 of the checkpoint's SHA256SUMS, which lists that of each file; None if it has none."""
