"""What a run leaves for the service: the averaged, pruned network in a checkpoint folder, and its card."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from contract.card import CARD_FILE, CheckpointCard
from model.checkpoints.card_file import write_card
from model.checkpoints.writer import sha256_of
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

from .branches import without_hoi_branch
from .recipe import TrainRecipe


def trained_card(base: CheckpointCard, recipe: TrainRecipe, *, steps: int, clips: int) -> CheckpointCard:
    """The card of a run's result: what this run trained on and at which size.

    Sampling settings and licence are the base's. What was measured or distilled on the base is left out, and
    so is the base's note.
    """
    if recipe.data is None:
        data = f"{clips} encoded clips"
    else:
        data = f"{recipe.data.name}: {clips} clips, sha256 {sha256_of(recipe.data)}"
    return base.model_copy(
        update={
            "name": recipe.output.name,
            "trained": True,
            "sizes": (f"{recipe.width}x{recipe.height}",),
            "min_side": min(base.min_side, recipe.width, recipe.height),
            "max_pixels": max(base.max_pixels, recipe.width * recipe.height),
            "draft": None,
            "calibration": {},
            "sources": {"base": base.name, "data": data, "training": f"{steps} steps, seed {recipe.seed}"},
            "note": recipe.note,
        }
    )


def export_checkpoint(
    folder: Path,
    pipeline: CoInteractPipeline,
    transformer: CoInteractTransformer3DModel,
    card: CheckpointCard,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint folder for the service: `transformer` pruned to RGB, all else from `pipeline`."""
    stored: dict[str, Any] = {"transformer": without_hoi_branch(transformer).to(dtype)}
    for name, part in pipeline.components.items():
        if name not in stored:
            foreign = isinstance(part, torch.nn.Module) and part.dtype != dtype
            stored[name] = copy.deepcopy(part).to(dtype) if foreign else part
    CoInteractPipeline(**stored).save_pretrained(folder)
    write_card(card, folder)
    # safetensors makes files that only their owner can read, but a worker may run as another user.
    for weights in folder.rglob("*.safetensors"):
        weights.chmod((folder / CARD_FILE).stat().st_mode)
