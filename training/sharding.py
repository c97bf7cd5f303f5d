"""Training in which each process holds a part of every weight (FSDP).

Weights, gradients, AdamW's moments and the moving average are divided; a block's weights are gathered while
it computes. A state names tensors and not processes, so a run may go on with another number of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from model.transformer import CoInteractTransformer3DModel

from .branches import choose_trained, empty_like
from .objective import CoGeneration
from .recipe import TrainRecipe

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)
WHOLE_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: CoGeneration, device: torch.device) -> None:
    """Divide the weights over all processes. One process alone keeps them whole."""
    model.to(device)
    if not distributed.is_initialized():
        return
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (*model.transformer.blocks, model):
        divided = fully_shard(module, mesh=mesh)
        # Some steps leave the HOI stream, motion or experts out, and not in all processes alike.
        divided.set_reduce_scatter_unused_params(True)


def held_here(weights: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each weight, in the same memory."""
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]


def save_shards(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: EMAModel,
    progress: dict[str, Any],
) -> None:
    """Every process writes its parts of the trained weights, their average and moments."""
    state = _state(model, optimizers, progress, average)
    state["average"] = _averaged(model, average)
    state_dict_saver.save(state, checkpoint_id=folder)


def load_shards(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: EMAModel,
    progress: dict[str, Any],
) -> dict[str, Any]:
    """Read a state of any number of processes into the parts held here; returns its `progress`."""
    state = _state(model, optimizers, progress, average)
    state["average"] = _averaged(model, average)
    state_dict_loader.load(state, checkpoint_id=folder)
    weights = _copied(state["model"])  # they are the model's own tensors, and the average takes their place
    set_model_state_dict(model, state["average"], options=TRAINED_ONLY)
    average.shadow_params = [part.detach().clone() for part in held_here(_trained(model))]
    average.optimization_step = state["average_steps"]
    set_state_dict(
        model,
        list(optimizers),
        model_state_dict=weights,
        optim_state_dict=state["optimizer"],
        options=TRAINED_ONLY,
    )
    found: dict[str, Any] = state["progress"]
    return found


def gathered(model: CoGeneration, recipe: TrainRecipe) -> CoInteractTransformer3DModel | None:
    """The whole network on the CPU of the main process; None in the others. All must call it."""
    if not distributed.is_initialized():
        return model.transformer
    weights = get_model_state_dict(model, options=WHOLE_STATE)
    if not weights:
        return None
    whole = empty_like(model.transformer, hoi_branch=model.transformer.config.hoi_branch)
    with torch.device("meta"):
        choose_trained(whole, recipe.lora_rank, recipe.experts, recipe.hoi_weight > 0)
    named = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    whole.load_state_dict(named, strict=True, assign=True)
    return whole


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _state(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, Any],
    average: EMAModel,
) -> dict[str, Any]:
    weights, moments = get_state_dict(model, list(optimizers), options=TRAINED_ONLY)
    return {
        "model": weights,
        "optimizer": moments,
        "progress": progress,
        "average_steps": average.optimization_step,
    }


def _averaged(model: nn.Module, average: EMAModel) -> dict[str, Any]:
    """The average under the weights' names: it is put in their place, copied, and taken out again."""
    parts = held_here(_trained(model))
    average.store(parts)
    average.copy_to(parts)
    copied = _copied(get_model_state_dict(model, options=TRAINED_ONLY))
    average.restore(parts)
    return copied


def _copied(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
