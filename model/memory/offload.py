"""Keeping weights on the GPU, or in main memory from where they stream through the GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _is_group_offload_enabled

from contract.memory import MemoryMode
from model.memory.host import host_memory_bytes
from model.memory.needs import fitting_mode, measure_checkpoint


def offload(pipeline: DiffusionPipeline, mode: MemoryMode, device: torch.device) -> None:
    """Set up streaming to `device`. The networks that stream are then in main memory, the others on the
    device.

    The text encoder goes layer by layer: it runs once per prompt. Transformer blocks go one by one, each
    fetched on a stream of its own while the one before it computes.
    """
    streams = device.type == "cuda"
    if mode is not MemoryMode.RESIDENT:
        apply_group_offloading(
            pipeline.text_encoder, onload_device=device, offload_type="leaf_level", use_stream=streams
        )
    if mode is MemoryMode.OFFLOAD:
        pipeline.transformer.enable_group_offload(
            onload_device=device, offload_type="block_level", num_blocks_per_group=1, use_stream=streams
        )


def onload_outer_layers(transformer: ModelMixin, device: torch.device) -> bool:
    """Bring the parts of an offloaded transformer that are outside its blocks to the device.

    They can then be used outside the forward pass, which takes them away again.

    Returns:
        Whether the transformer is offloaded. If it is, only its forward pass may use its blocks.
    """
    if not _is_group_offload_enabled(transformer):
        return False
    for name, part in transformer.named_children():
        if name != "blocks":
            part.to(device)
    return True


def choose_mode(folder: Path, device: torch.device, sizes: list[tuple[int, int]]) -> MemoryMode:
    """The fastest mode in which all of these sizes fit on the device; OFFLOAD if none does."""
    if device.type != "cuda":
        return MemoryMode.RESIDENT
    total = torch.cuda.get_device_properties(device).total_memory
    host = host_memory_bytes()
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return fitting_mode(measure_checkpoint(folder), total, host, width, height) or MemoryMode.OFFLOAD
