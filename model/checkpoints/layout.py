"""Which tensors official files must hold: the official names that have a place in our networks.

The networks are built on the meta device, so shapes come from the classes that will load the result. A name
without a place, or two names for one place, are found before any data is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import TypeVar

import torch
from torch import nn

from model.checkpoints.errors import CheckpointError, Fault, Problem
from model.checkpoints.official import TensorTable
from model.checkpoints.official_components import t5_name, vae_name, wav2vec2_name
from model.checkpoints.official_names import dit_name, is_hoi_name

Model = TypeVar("Model", bound=nn.Module)

_WEIGHT_BIAS = ("weight", "bias")
_MOST_LAYERS = 100
"""Names are tried up to this layer number. None of these networks has nearly as many."""


@dataclass(frozen=True)
class Slot:
    """Where an official tensor goes."""

    name: str
    """Its name in our network."""
    shape: tuple[int, ...]


Layout = Mapping[str, Slot]
"""Slots by official names."""


def transformer_layout(model: nn.Module, audio_inject_layers: Sequence[int]) -> Layout:
    """Base, MoE and, if the model has them, HOI tensors under official names; the shared FFN is `ffn.0`,
    `ffn.2`.
    """
    return _layout(_transformer_names(), lambda name: dit_name(name, audio_inject_layers), model)


def text_encoder_layout(model: nn.Module) -> Layout:
    # The embedding is one tensor under two names.
    return _layout(_t5_names(), t5_name, model, tied=("encoder.embed_tokens.weight",))


def vae_layout(model: nn.Module, num_res_blocks: int) -> Layout:
    return _layout(_vae_names(), lambda name: vae_name(name, num_res_blocks), model)


def audio_encoder_layout(model: nn.Module) -> Layout:
    inverse = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    names = list(model.state_dict())
    for ours, theirs in inverse.items():
        names = [name.replace(ours, theirs) for name in names]
    return _layout((f"wav2vec2.{name}" for name in names), wav2vec2_name, model)


def is_moe_name(official: str) -> bool:
    return any(part in official for part in (".ffn.router.", ".ffn.hand_expert.", ".ffn.face_expert."))


def is_lora_target(official: str) -> bool:
    """Whether official training puts LoRA on a tensor: q, k, v and o of blocks and audio injectors, the
    shared FFN.
    """
    stem, _, leaf = official.rpartition(".")
    last = stem.rpartition(".")[2]
    attention = ".self_attn." in official or ".cross_attn." in official or ".injector." in official
    feed_forward = stem.endswith((".ffn.0", ".ffn.2"))
    return leaf == "weight" and (feed_forward or (attention and last in "qkvo"))


def check_table(table: TensorTable, layout: Layout, file: str) -> list[Problem]:
    """The tensors of a table that are missing, unexpected or mis-shaped by the layout."""
    problems = []
    for name, place in layout.items():
        info = table.get(name)
        if info is None:
            problems.append(Problem(Fault.MISSING, name, f"expected {list(place.shape)} in {file}"))
        elif info.shape != place.shape:
            found = f"found {list(info.shape)} in {info.file.name}"
            problems.append(Problem(Fault.WRONG_SHAPE, name, f"expected {list(place.shape)}, {found}"))
    for name in table.keys() - layout.keys():
        detail = f"found {list(table[name].shape)} in {table[name].file.name}, expected no such tensor"
        problems.append(Problem(Fault.UNEXPECTED, name, detail))
    return problems


def _layout(
    names: Iterable[str], rename: Callable[[str], str | None], model: nn.Module, tied: Sequence[str] = ()
) -> Layout:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    layout: dict[str, Slot] = {}
    taken: set[str] = set()
    for name in names:
        try:
            ours = rename(name)
        except KeyError:
            continue
        if ours is None or ours not in shapes:
            continue
        if ours in taken:
            raise AssertionError(f"two official names map to {ours}; the second is {name}")
        taken.add(ours)
        layout[name] = Slot(ours, shapes[ours])
    if left := sorted(shapes.keys() - taken):
        raise AssertionError(f"no official name maps to {left[:5]}")
    return layout


def _join(*parts: Sequence[str]) -> Iterator[str]:
    return (".".join(words) for words in product(*parts))


def _numbers() -> list[str]:
    return [str(number) for number in range(_MOST_LAYERS)]


def _transformer_names() -> Iterator[str]:
    attention = (*_join("qkvo", _WEIGHT_BIAS), "norm_q.weight", "norm_k.weight")
    embeddings = (
        "patch_embedding",
        "cond_encoder",
        "text_embedding.0",
        "text_embedding.2",
        "time_embedding.0",
        "time_embedding.2",
        "time_projection.1",
        *_join(["frame_packer"], ["proj", "proj_2x", "proj_4x"]),
        *_join(["casual_audio_encoder.encoder"], ["conv1_local", "conv1_global", "conv2", "conv3"], ["conv"]),
        "casual_audio_encoder.encoder.final_linear",
        "head.head",
        "depth_patch_embedding",
        "depth_head.head",
    )
    block = (
        "modulation",
        "depth_modulation",
        *_join(["norm3"], _WEIGHT_BIAS),
        *_join(["self_attn", "cross_attn"], attention),
        *_join(["ffn"], ["0", "2", "router.0", "router.2", "router.3"], _WEIGHT_BIAS),
        *_join(["ffn"], ["hand_expert", "face_expert"], ["fc1", "fc2"], _WEIGHT_BIAS),
    )
    return chain(
        _join(embeddings, _WEIGHT_BIAS),
        ("trainable_cond_mask.weight", "depth_cond_mask.weight", "head.modulation", "depth_head.modulation"),
        ("casual_audio_encoder.weights", "casual_audio_encoder.encoder.padding_tokens"),
        _join(["blocks"], _numbers(), block),
        _join(["audio_injector.injector"], _numbers(), attention),
        _join(["audio_injector.injector_adain_layers"], _numbers(), ["linear"], _WEIGHT_BIAS),
    )


def _t5_names() -> Iterator[str]:
    block = (
        *_join(["attn"], "qkvo"),
        "pos_embedding.embedding",
        *_join(["ffn"], ["gate.0", "fc1", "fc2"]),
        "norm1",
        "norm2",
    )
    return _join(("token_embedding", "norm", *_join(["blocks"], _numbers(), block)), ["weight"])


def _vae_names() -> Iterator[str]:
    residual = (
        *_join(["residual"], ["0", "3"], ["gamma"]),
        *_join(["residual"], ["2", "6"], _WEIGHT_BIAS),
        *_join(["shortcut"], _WEIGHT_BIAS),
    )
    attention = ("norm.gamma", *_join(["to_qkv", "proj"], _WEIGHT_BIAS))
    resample = tuple(_join(["resample.1", "time_conv"], _WEIGHT_BIAS))
    sides = ["encoder", "decoder"]
    return chain(
        _join(["conv1", "conv2", "encoder.conv1", "decoder.conv1"], _WEIGHT_BIAS),
        _join(sides, ["head.0.gamma", *_join(["head.2"], _WEIGHT_BIAS)]),
        _join(sides, ["middle"], ["0", "2"], residual),
        _join(sides, ["middle.1"], attention),
        _join(["encoder.downsamples", "decoder.upsamples"], _numbers(), (*residual, *resample)),
    )


def split_transformer(
    layout: Layout,
) -> tuple[dict[str, Slot], dict[str, Slot], dict[str, Slot]]:
    """(base, MoE, HOI) parts of a transformer layout."""
    base: dict[str, Slot] = {}
    moe: dict[str, Slot] = {}
    hoi: dict[str, Slot] = {}
    for name, place in layout.items():
        part = hoi if is_hoi_name(name) else moe if is_moe_name(name) else base
        part[name] = place
    return base, moe, hoi


def refuse(problems: Sequence[Problem]) -> None:
    """Raise CheckpointError if there are problems."""
    if problems:
        raise CheckpointError(problems)


def on_meta(build: Callable[[], Model]) -> Model:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        return build()
