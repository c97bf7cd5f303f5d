"""Keeping weights on the GPU, or in main memory from where they stream through the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import UMT5EncoderModel

from contract.memory import MemoryMode
from model.memory.host import host_memory_bytes
from model.memory.lanes import Lanes
from model.memory.needs import PLANS, Plan, fitting_plan, host_needed, measure_checkpoint, needed
from model.memory.streaming import BlockStream
from model.transformer import CoInteractTransformer3DModel


@dataclass(frozen=True)
class Streams:
    """What of a pipeline's weights streams through its device; None stays there."""

    text_encoder: BlockStream | None = None
    transformer: BlockStream | None = None

    @property
    def mode(self) -> MemoryMode:
        if self.transformer is not None:
            return MemoryMode.OFFLOAD
        return MemoryMode.RESIDENT if self.text_encoder is None else MemoryMode.TEXT_OFFLOAD

    def park(self) -> None:
        """Give back what streaming holds of the device's memory, until the next pass."""
        for stream in (self.text_encoder, self.transformer):
            if stream is not None:
                stream.park()


def stream_weights(
    text_encoder: UMT5EncoderModel | None,
    transformer: CoInteractTransformer3DModel,
    mode: MemoryMode,
    device: torch.device,
    lanes: Lanes,
) -> Streams:
    """Arrange for `device` what is to stream. Those networks lie in main memory now, the others on the
    device. A rank that encodes nothing has no text encoder.

    Only blocks stream. What lies outside them goes to the device for good, but for the embedding of words: a
    prompt reads 512 of its 256,384 rows, in main memory.
    """
    text_stream = transformer_stream = None
    if mode is not MemoryMode.RESIDENT and text_encoder is not None:
        text_stream = BlockStream(list(text_encoder.encoder.block), device, lanes)
        text_encoder.encoder.final_layer_norm.to(device)
    if mode is MemoryMode.OFFLOAD:
        transformer_stream = BlockStream(list(transformer.blocks), device, lanes)
        _move_outer_layers(transformer, device)
    return Streams(text_stream, transformer_stream)


def _move_outer_layers(transformer: CoInteractTransformer3DModel, device: torch.device) -> None:
    for part in transformer.children():
        if part is not transformer.blocks:
            part.to(device)
    for parameter in transformer.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in transformer.named_buffers(recurse=False):
        setattr(transformer, name, buffer.to(device))


def choose_plan(
    folder: Path,
    device: torch.device,
    sizes: list[tuple[int, int]],
    ranks: int,
    wanted: MemoryMode | None = None,
) -> Plan:
    """The fastest plan in which these sizes all fit on a GPU, one of `ranks`; the last one if none does.

    If a mode is wanted, it is of that mode.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    size = measure_checkpoint(folder)
    if wanted is None:
        return fitting_plan(size, total, host_memory_bytes(), width, height, ranks) or PLANS[-1]
    whole = needed(size, Plan(wanted), width, height, ranks)
    return Plan(wanted, in_parts=whole.gpu > total)


def next_mode(folder: Path, mode: MemoryMode, ranks: int) -> MemoryMode | None:
    """What a worker may fall to that ran out of the device's memory in `mode`; None if main memory, or
    nothing, is left to move to.
    """
    following = mode.next
    if following is None or host_needed(measure_checkpoint(folder), following, ranks) > host_memory_bytes():
        return None
    return following
