"""The HOI stream's parts and the LoRA pairs, which are added before training and removed after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from model.transformer import CoInteractTransformer3DModel

# The part of the video's stream that each part of the HOI stream starts from.
HOI_SOURCES = {
    "hoi_patch_embedding": "patch_embedding",
    "hoi_proj_out": "proj_out",
    "hoi_scale_shift_table": "scale_shift_table",
}
# The official LoRA: q, k, v, o of blocks and of the audio injection, and both feed-forward layers.
LORA_TARGETS = (
    r"blocks\.\d+\.(attn1|attn2|audio_injection\.attn)\.(to_q|to_k|to_v|to_out\.0)"
    r"|blocks\.\d+\.ffn\.net\.(0\.proj|2)"
)
LORA_ADAPTER = "default"


def is_hoi(name: str) -> bool:
    """Whether a parameter belongs to the HOI stream alone."""
    return any(part.startswith("hoi_") for part in name.split("."))


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to a router or to a hand or face expert."""
    return "moe" in name.split(".")


def with_hoi_branch(transformer: CoInteractTransformer3DModel) -> CoInteractTransformer3DModel:
    """The network with an HOI stream, which starts as a copy of the video's parts.

    A network that already has one is returned as it is.
    """
    if transformer.config.hoi_branch:
        return transformer
    grown = empty_like(transformer, hoi_branch=True)
    weights = transformer.state_dict()
    for name in grown.state_dict():
        if not is_hoi(name):
            continue
        source = ".".join(HOI_SOURCES.get(part, part) for part in name.split("."))
        # The type embedding has no counterpart, as none of the video's rows fits.
        value = weights.get(source)
        shape = grown.state_dict()[name].shape
        weights[name] = transformer.type_embedding.weight.new_zeros(shape) if value is None else value.clone()
    grown.load_state_dict(weights, strict=True, assign=True)
    return grown


def without_hoi_branch(transformer: CoInteractTransformer3DModel) -> CoInteractTransformer3DModel:
    """The RGB-only network, a copy on the CPU: HOI parts dropped, LoRA merged, all else equal."""
    pruned = empty_like(transformer, hoi_branch=False)
    weights = {name: tensor for name, tensor in merged_weights(transformer).items() if not is_hoi(name)}
    pruned.load_state_dict(weights, strict=True, assign=True)
    pruned.eval()
    return pruned


def add_lora(transformer: CoInteractTransformer3DModel, rank: int) -> None:
    """Freeze everything, put LoRA pairs (alpha = rank) where the official training has them."""
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, init_lora_weights="gaussian"),
        LORA_ADAPTER,
    )


def choose_trained(
    transformer: CoInteractTransformer3DModel, lora_rank: int | Literal["full"], experts: bool, hoi: bool
) -> None:
    """Set which weights are trained.

    `lora_rank` "full": all. Otherwise LoRA pairs, and experts and HOI parts in full, as in the official code.
    """
    if lora_rank == "full":
        transformer.requires_grad_(True)
    else:
        add_lora(transformer, lora_rank)
    for name, weight in transformer.named_parameters():
        if is_expert(name):
            weight.requires_grad_(experts)
        elif is_hoi(name):
            weight.requires_grad_(hoi)


@torch.no_grad()
def merged_weights(transformer: CoInteractTransformer3DModel) -> dict[str, torch.Tensor]:
    """The state dict under the plain names, on the CPU, with LoRA pairs merged in: W + B·A."""
    weights = {
        name.replace(".base_layer.", "."): tensor.detach().to("cpu", copy=True)
        for name, tensor in transformer.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in _lora_layers(transformer):
        weight = weights[f"{name}.weight"]
        weight += layer.get_delta_weight(LORA_ADAPTER).to(weight)
    return weights


def empty_like(transformer: CoInteractTransformer3DModel, hoi_branch: bool) -> CoInteractTransformer3DModel:
    """A network of the same sizes on the meta device."""
    settings = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    with torch.device("meta"):  # draws no random values for 17 B weights: the given ones replace them
        made: CoInteractTransformer3DModel = CoInteractTransformer3DModel(
            **{**settings, "hoi_branch": hoi_branch}
        )
    return made


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    for name, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer
