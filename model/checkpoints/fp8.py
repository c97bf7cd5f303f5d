"""Which tensors `convert --fp8-ffn` stores in 8 bits, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from model.checkpoints.merge import PlannedTensor
from model.checkpoints.writer import OutputTensor
from model.network.fp8_linear import quantize_rows

# The shared feed-forward holds a third of the parameters and works well in 8 bits. Attention weights in fp8
# are known to break long Wan 2.2 videos, and the experts are small.
_FP8_WEIGHT = re.compile(r"blocks\.\d+\.ffn\.net\.(0\.proj|2)\.weight")


def is_fp8_weight(name: str) -> bool:
    return _FP8_WEIGHT.fullmatch(name) is not None


def fp8_outputs(tensor: PlannedTensor) -> list[OutputTensor]:
    """The bits of one weight and, written right after them, its row scales."""
    scales: list[torch.Tensor] = []

    def bits() -> Iterator[torch.Tensor]:
        scales.clear()
        for rows in tensor.slices():
            quantized, scale = quantize_rows(rows)
            scales.append(scale)
            yield quantized

    def row_scales() -> Iterator[torch.Tensor]:
        yield torch.cat(scales)

    rows = tensor.shape[0]
    return [
        OutputTensor(tensor.name, tensor.shape, torch.uint8, bits),
        OutputTensor(f"{tensor.name}_scale", (rows, 1), torch.float32, row_scales),
    ]
