"""How much GPU and main memory a checkpoint needs: `doctor` tells it, and the worker chooses its mode by it.

The numbers per token and per pixel are counted: benchmarks/activation_memory.py runs the real networks at
full size on tensors without data. docs/weights.md derives the rest. This module does without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.memory import MemoryMode
from contract.video import CLIP_LATENT_FRAMES
from model.parallel.arrangement import degrees

LOADED_BYTES = 2
"""Bytes of a weight on the GPU, in bf16. Weights stored in 8 bits take one byte."""

HIDDEN_STATES_PER_TOKEN = 7.8
"""Peak of one forward, in bf16 vectors of the transformer's width per token. The conditioning of both prompts
is kept, and there is a pose.
"""

IN_PARTS_STATES_PER_TOKEN = 6.6
"""The same if the tokens pass the feed-forwards in parts."""

PART_TOKENS = 8192
"""Tokens of a part. They keep a GPU busy, and their inner values take a quarter of a gigabyte."""

DECODE_BYTES_PER_PIXEL = 9_500
ENCODE_BYTES_PER_PIXEL = 6_800
"""Peaks of the VAE in bf16, per pixel of a frame. Its causal cache makes the number of frames irrelevant."""

SHARED_STATES_PER_TOKEN = 11
"""The same where several ranks share a pass's tokens: what is on its way to and from them is held as well."""

LATENT_BYTES_PER_PIXEL = 140
"""Noise, latents, new and foretold velocity, and the three that a preset which skips steps keeps: seven
tensors of 16 channels and 20 frames in float32, at a 64th of a frame's pixels.
"""

CACHED_BYTES = 4_500
"""Keys and values of both prompts and of the speech, per layer and unit of width."""

TEXT_ENCODER_WORK_BYTES = 600_000_000
CONTEXT_BYTES = 1_200_000_000
"""CUDA context, cuBLAS and cuDNN workspaces."""

GAPS = 1.06
"""Factor for what the allocator loses between its blocks."""

HOST_BYTES = 4_000_000_000
"""A worker's own memory outside weights: libraries, frames, audio, encoder."""

MOTION_FRAMES_OF_TOKENS = 1.5
"""Motion tokens, in frames: 1 for the newest frame, 1/4 for the two before, 4/16 for the sixteen before."""


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes that a checkpoint's parts take once loaded."""

    transformer: int
    transformer_block: int
    """Bytes of the largest single block."""
    transformer_rest: int
    """Bytes outside the blocks, which are always on the GPU."""
    text_encoder: int
    vae: int
    audio_encoder: int
    width: int
    layers: int
    ffn_weights: int
    """How many feed-forward weights all blocks have: those that can be stored in 8 bits."""
    fp8: bool

    @property
    def total(self) -> int:
        return self.transformer + self.text_encoder + self.vae + self.audio_encoder


OFFICIAL_SIZE = CheckpointSize(
    transformer=34_061_606_818,
    transformer_block=1_054_195_718,
    transformer_rest=704_110_258,
    text_encoder=11_361_820_672,
    vae=253_785_062,
    audio_encoder=630_875_392,
    width=5120,
    layers=40,
    ffn_weights=40 * 2 * 5120 * 13824,
    fp8=False,
)
"""The official weights, converted; a test derives it from the official layouts."""


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is to be rendered, so that it fits."""

    mode: MemoryMode
    in_parts: bool = False
    """Whether tokens pass the feed-forwards in parts, and frames the VAE's decoder: hardly slower."""


PLANS = tuple(Plan(mode, in_parts) for mode in MemoryMode for in_parts in (False, True))
"""Fastest first."""


@dataclass(frozen=True)
class Need:
    """Peak memory of rendering one size in one mode."""

    gpu: int
    host: int
    """Bytes of main memory, where offloaded weights are."""


def tokens(width: int, height: int) -> int:
    """Tokens of a clip after the first, with product: target, person, product, motion."""
    frame = (width // 16) * (height // 16)
    return int((CLIP_LATENT_FRAMES + 1 + 1 + MOTION_FRAMES_OF_TOKENS) * frame)


def needed(size: CheckpointSize, plan: Plan, width: int, height: int, ranks: int = 1) -> Need:
    """Peak memory of rendering `width` × `height` with guidance on `ranks` devices: of the first, which also
    encodes, and of the main memory that all of them use.
    """
    guidance, sequence = degrees(ranks, guided=True)
    pixels = width * height
    held = tokens(width, height) / sequence
    states = IN_PARTS_STATES_PER_TOKEN if plan.in_parts else HIDDEN_STATES_PER_TOKEN
    if sequence > 1:
        states = SHARED_STATES_PER_TOKEN
    denoising = int(states * LOADED_BYTES * size.width * held) + LATENT_BYTES_PER_PIXEL * pixels
    denoising += CACHED_BYTES * size.layers * size.width // guidance
    # Decoding bands of a frame, one after the other or each on its rank, takes less than encoding whole ones.
    in_bands = plan.in_parts or ranks > 1
    coding = (ENCODE_BYTES_PER_PIXEL if in_bands else DECODE_BYTES_PER_PIXEL) * pixels
    mode, weights = plan.mode, size.vae + size.audio_encoder
    if mode is MemoryMode.OFFLOAD:
        weights += size.transformer_rest + 2 * size.transformer_block  # one computes, the next one arrives
    else:
        weights += size.transformer
    if mode is MemoryMode.RESIDENT:
        weights += size.text_encoder
    activations = max(denoising, coding, TEXT_ENCODER_WORK_BYTES)
    return Need(gpu=int((weights + activations) * GAPS) + CONTEXT_BYTES, host=host_needed(size, mode, ranks))


def host_needed(size: CheckpointSize, mode: MemoryMode, ranks: int = 1) -> int:
    """Main memory of a worker's ranks together: what streams from there lies there, pinned as it is, not
    rounded up.
    """
    streaming = 0
    if mode is not MemoryMode.RESIDENT:
        streaming += size.text_encoder
    if mode is MemoryMode.OFFLOAD:
        streaming += ranks * (size.transformer - size.transformer_rest)
    return HOST_BYTES * ranks + streaming


def fitting_plan(
    size: CheckpointSize, gpu_bytes: int, host_bytes: int, width: int, height: int, ranks: int = 1
) -> Plan | None:
    """The fastest that fits; None if none does."""
    for plan in PLANS:
        need = needed(size, plan, width, height, ranks)
        if need.gpu <= gpu_bytes and need.host <= host_bytes:
            return plan
    return None


def with_fp8(size: CheckpointSize) -> CheckpointSize:
    """What the same checkpoint takes if it is converted with --fp8-ffn."""
    if size.fp8:
        return size
    saved = size.ffn_weights * (LOADED_BYTES - 1)
    return replace(
        size,
        transformer=size.transformer - saved,
        transformer_block=size.transformer_block - saved // max(1, size.layers),
        fp8=True,
    )


def measure_checkpoint(folder: Path) -> CheckpointSize:
    """Sizes of a checkpoint folder, from its files' headers.

    Raises:
        FileNotFoundError: a component or its configuration is missing.
        ValueError: a file is no safetensors file, or the configuration lacks the transformer's dims.
    """
    blocks: dict[str, int] = {}
    rest = ffn_weights = 0
    fp8 = False
    for name, entry in _entries(folder / "transformer"):
        size = _loaded_bytes(entry)
        fp8 = fp8 or entry["dtype"] == "U8"
        if name.startswith("blocks."):
            number = name.split(".")[1]
            blocks[number] = blocks.get(number, 0) + size
            if ".ffn.net." in name and name.endswith(".weight"):
                ffn_weights += math.prod(entry["shape"])
        else:
            rest += size
    config = json.loads((folder / "transformer" / "config.json").read_text())
    try:
        width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'transformer' / 'config.json'} has no {error}") from error
    return CheckpointSize(
        transformer=sum(blocks.values()) + rest,
        transformer_block=max(blocks.values(), default=0),
        transformer_rest=rest,
        text_encoder=_component_bytes(folder / "text_encoder"),
        vae=_component_bytes(folder / "vae"),
        audio_encoder=_component_bytes(folder / "audio_encoder"),
        width=width,
        layers=len(blocks),
        ffn_weights=ffn_weights,
        fp8=fp8,
    )


def _component_bytes(folder: Path) -> int:
    return sum(_loaded_bytes(entry) for _, entry in _entries(folder))


def _loaded_bytes(entry: Mapping[str, Any]) -> int:
    start, end = entry["data_offsets"]
    stored = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}[entry["dtype"]]
    return int((end - start) // stored * min(stored, LOADED_BYTES))


def _entries(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors weights")
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length < path.stat().st_size:
                raise ValueError(f"{path} is not a safetensors file")
            header: dict[str, Mapping[str, Any]] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        yield from header.items()
