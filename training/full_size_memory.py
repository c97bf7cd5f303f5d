"""Computes the memory of full-size training without running it: `python -m training.full_size_memory`.

Parameter counts are those of the real network on the meta device; activation bytes are counted per token.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from contract.video import CLIP_LATENT_FRAMES
from model.transformer import CoInteractTransformer3DModel

from .branches import choose_trained, is_expert, is_hoi

log = logging.getLogger(__name__)

BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Parameters:
    """Counts of the transformer with HOI stream and LoRA."""

    frozen: int
    lora: int
    experts: int
    hoi: int

    @property
    def trained(self) -> int:
        return self.lora + self.experts + self.hoi


def count_parameters(rank: int) -> Parameters:
    """Full-size counts; nothing is allocated."""
    with torch.device("meta"):
        transformer = CoInteractTransformer3DModel(hoi_branch=True)
        choose_trained(transformer, rank, experts=True, hoi=True)
    counts = {"frozen": 0, "lora": 0, "experts": 0, "hoi": 0}
    for name, weight in transformer.named_parameters():
        if not weight.requires_grad:
            kind = "frozen"
        elif ".lora_" in name:
            kind = "lora"
        elif is_expert(name):
            kind = "experts"
        else:
            if not is_hoi(name):
                raise ValueError(f"{name} is trained, and neither LoRA, expert nor HOI")
            kind = "hoi"
        counts[kind] += weight.numel()
    return Parameters(**counts)


def count_tokens(width: int, height: int, *, hoi: bool) -> int:
    """Tokens of one training clip with person, product and motion."""
    rows, columns = height // 16, width // 16
    grid = rows * columns
    motion = grid + (rows // 2) * (columns // 2) + 4 * (rows // 4) * (columns // 4)
    return CLIP_LATENT_FRAMES * grid * (2 if hoi else 1) + 2 * grid + motion


def memory_table(rank: int, width: int, height: int, devices: int = 1) -> dict[str, float]:
    """GB (10⁹ bytes) on one device: frozen weights bf16, trained ones fp32, AdamW, EMA, checkpointing.

    Several devices (`shard = true`) divide all but activations, and each gathers the block that computes and
    the next one.

    Activations: the input of each of 40 blocks, and within the block being recomputed about 16 vectors of
    the model's width and two of the feed-forward's per token. Text encoder, VAE and audio encoder take no
    memory, because clips are encoded beforehand.
    """
    parameters = count_parameters(rank)
    tokens = count_tokens(width, height, hoi=True)
    dim, ffn, layers = 5120, 13824, 40
    frozen, trained = parameters.frozen / devices, parameters.trained / devices
    whole = parameters.frozen * BF16 + parameters.trained * FP32
    return {
        "frozen weights": frozen * BF16 / 1e9,
        "trained weights": trained * FP32 / 1e9,
        "gradients": trained * FP32 / 1e9,
        "AdamW": 2 * trained * FP32 / 1e9,
        "moving average": trained * FP32 / 1e9,
        "two gathered blocks": 0.0 if devices == 1 else 2 * whole / layers / 1e9,
        "inputs of blocks": tokens * dim * layers * BF16 / 1e9,
        "one block's activations": tokens * (16 * dim + 2 * ffn) * BF16 / 1e9,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--size", default="480x720", metavar="WIDTHxHEIGHT")
    parser.add_argument("--devices", type=int, default=1, help="that divide the weights (shard = true)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    width, height = (int(side) for side in options.size.split("x"))
    parameters = count_parameters(options.rank)
    for name in ("frozen", "lora", "experts", "hoi", "trained"):
        log.info("%-36s %8.1f M parameters", name, getattr(parameters, name) / 1e6)
    log.info("%-36s %8d tokens per clip", options.size, count_tokens(width, height, hoi=True))
    table = memory_table(options.rank, width, height, options.devices)
    for name, gigabytes in {**table, "sum": sum(table.values())}.items():
        log.info("%-36s %8.1f GB", name, gigabytes)


if __name__ == "__main__":
    main()
