"""Which kernel computes attention."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from contract.frozen import Frozen


class AttentionBackend(StrEnum):
    """All of them compute the same. They differ in speed, and in the last bits."""

    AUTO = "auto"
    """Measure the backends that this machine has, and take the fastest."""
    TORCH = "torch"
    """Whichever torch itself chooses."""
    CUDNN = "cudnn"
    TORCH_FLASH = "torch-flash"
    TORCH_EFFICIENT = "torch-efficient"
    TORCH_MATH = "torch-math"
    """Writes all scores to memory: for comparison only."""
    FLASH_2 = "flash-2"
    """Package `flash-attn`."""
    FLASH_3 = "flash-3"
    """Package `flash_attn_interface`, built from FlashAttention's sources; for H100 and H200."""
    FLASH_3_HUB = "flash-3-hub"
    """The same, ready-made: package `kernels` fetches it from the Hugging Face Hub when it is first used."""


class AttentionReport(Frozen):
    """The attention backend of a worker, and how fast the alternatives are."""

    backend: AttentionBackend
    tokens: int
    """Tokens of a clip at the checkpoint's default size, for which the speeds were measured."""
    teraflops: dict[AttentionBackend, float] = Field(default_factory=dict)
    """Measured TFLOP/s of the backends that can be used."""
