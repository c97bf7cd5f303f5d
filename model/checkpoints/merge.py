"""Base + CoInteract file → our transformer's tensors: LoRA merged in fp32, MoE in full, HOI kept or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from model.checkpoints.errors import CheckpointError, Fault, Problem
from model.checkpoints.layout import (
    Layout,
    Slot,
    check_table,
    is_lora_target,
    is_moe_name,
    refuse,
    split_transformer,
)
from model.checkpoints.official import TensorInfo, TensorTable
from model.checkpoints.official_names import is_hoi_name

SLICE_BYTES = 128 * 2**20
"""Tensors are read, merged and written in slices of about this size in fp32, which bounds the memory needed.
"""

_LORA = re.compile(r"(?P<stem>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


class Origin(StrEnum):
    """Where a tensor of the output comes from."""

    BASE = "base"
    MERGED = "base + LoRA"
    MOE = "mixture of experts"
    HOI = "HOI branch"
    COMPONENT = "component"


@dataclass(frozen=True)
class LoraPair:
    """W += B·A. Official LoRA has alpha = rank, so there is no other factor."""

    down: TensorInfo
    """A: (rank, in)"""
    up: TensorInfo
    """B: (out, rank)"""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: where it comes from, and what is done to it."""

    name: str
    """The tensor's name in our network."""
    source: TensorInfo
    origin: Origin
    lora: LoraPair | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def slices(self) -> Iterator[torch.Tensor]:
        """Consecutive row slices that make up the whole tensor: in fp32 if LoRA is merged, else as stored."""
        down = None if self.lora is None else self.lora.down.read().float()  # (rank, in)
        for start, stop in self.source.row_ranges(SLICE_BYTES):
            rows = self.source.read_rows(start, stop)
            if self.lora is not None and down is not None:
                rows = torch.addmm(rows.float(), self.lora.up.read_rows(start, stop).float(), down)
            yield rows


@dataclass(frozen=True)
class CoInteractTensors:
    """A CoInteract file's tensors under the base model's names."""

    lora: Mapping[str, LoraPair]
    """LoRA pairs by the official names of the weights that they change."""
    moe: TensorTable
    hoi: TensorTable


@dataclass(frozen=True)
class TransformerPlan:
    tensors: tuple[PlannedTensor, ...]
    dropped: tuple[TensorInfo, ...]
    """HOI tensors that the output does not hold."""
    ranks: tuple[int, ...]
    """Ranks of the LoRA pairs, each once, ascending."""


def official_name(name: str) -> str:
    """The base model's name of a CoInteract file's tensor: no prefix, and `ffn.0` for `ffn.ffn_base.0`."""
    return name.removeprefix("diffusion_model.").replace(".ffn.ffn_base.", ".ffn.")


def expert_hidden_dim(table: TensorTable) -> int:
    """Width of the experts, read from the first one found.

    Raises:
        CheckpointError: the file has no expert.
    """
    for name, info in table.items():
        if official_name(name).endswith(".ffn.hand_expert.fc1.weight") and len(info.shape) == 2:
            return info.shape[0]
    detail = "expected the mixture of experts in the CoInteract file, found no expert"
    raise CheckpointError([Problem(Fault.MISSING, "blocks.0.ffn.hand_expert.fc1.weight", detail)])


def plan_transformer(
    base: TensorTable, cointeract: TensorTable, layout: Layout, keep_hoi: bool
) -> TransformerPlan:
    """Check both files against the layout (built with the HOI branch) and say how each output tensor is made.

    Raises:
        CheckpointError: tensors are missing, unexpected, duplicated or mis-shaped, a LoRA half has no other
            half or another rank, or the HOI tensors to keep are not there. It lists every problem found.
    """
    base_layout, moe_layout, hoi_layout = split_transformer(layout)
    file = next(iter(cointeract.values())).file.name if cointeract else "the CoInteract file"
    parts, problems = _sort(cointeract)
    problems += check_table(base, base_layout, "the base model")
    problems += _check_lora(parts.lora, base_layout, file)
    problems += check_table(parts.moe, moe_layout, file)
    if parts.hoi or keep_hoi:
        problems += check_table(parts.hoi, hoi_layout, file)
    refuse(problems)

    tensors = [_planned(info, base_layout[name], parts.lora.get(name)) for name, info in base.items()]
    tensors += [PlannedTensor(moe_layout[name].name, info, Origin.MOE) for name, info in parts.moe.items()]
    if keep_hoi:
        tensors += [
            PlannedTensor(hoi_layout[name].name, info, Origin.HOI) for name, info in parts.hoi.items()
        ]
    ranks = sorted({pair.rank for pair in parts.lora.values()})
    return TransformerPlan(tuple(tensors), () if keep_hoi else tuple(parts.hoi.values()), tuple(ranks))


def _planned(info: TensorInfo, place: Slot, lora: LoraPair | None) -> PlannedTensor:
    return PlannedTensor(place.name, info, Origin.BASE if lora is None else Origin.MERGED, lora)


def _sort(table: TensorTable) -> tuple[CoInteractTensors, list[Problem]]:
    problems: list[Problem] = []
    halves: dict[str, dict[str, TensorInfo]] = {"A": {}, "B": {}}
    moe: TensorTable = {}
    hoi: TensorTable = {}
    for name, info in table.items():
        official = official_name(name)
        match = _LORA.fullmatch(official)
        if match:
            part, key = halves[match["side"]], f"{match['stem']}.weight"
        elif is_hoi_name(official):
            part, key = hoi, official
        elif is_moe_name(official):
            part, key = moe, official
        else:
            found = f"found {list(info.shape)} in {info.file.name}"
            detail = f"{found}, expected LoRA, expert, router or HOI tensors only"
            problems.append(Problem(Fault.UNEXPECTED, name, detail))
            continue
        if key in part:
            detail = f"expected once; {part[key].name} and {name} in {info.file.name} mean the same tensor"
            problems.append(Problem(Fault.DUPLICATE, name, detail))
            continue
        part[key] = replace(info, name=name)
    lora: dict[str, LoraPair] = {}
    for side, other in (("A", "B"), ("B", "A")):
        for key, info in halves[side].items():
            if key not in halves[other]:
                wanted = info.name.replace(f".lora_{side}.", f".lora_{other}.")
                problems.append(
                    Problem(Fault.MISSING, wanted, f"expected beside {info.name} in {info.file.name}")
                )
            elif side == "A":
                lora[key] = LoraPair(down=info, up=halves[other][key])
    return CoInteractTensors(lora, moe, hoi), problems


def _check_lora(lora: Mapping[str, LoraPair], base_layout: Mapping[str, Slot], file: str) -> list[Problem]:
    problems: list[Problem] = []
    for name, place in base_layout.items():
        if not is_lora_target(name):
            continue
        pair = lora.get(name)
        if pair is None:
            stem = name.removesuffix(".weight")
            detail = f"expected [rank, {place.shape[1]}] in {file}, and its lora_B beside it"
            problems.append(Problem(Fault.MISSING, f"{stem}.lora_A.weight", detail))
            continue
        rows, columns = place.shape
        if len(pair.down.shape) != 2 or pair.down.shape[1] != columns:
            detail = f"expected [rank, {columns}], found {list(pair.down.shape)} in {file}"
            problems.append(Problem(Fault.WRONG_SHAPE, pair.down.name, detail))
        elif pair.up.shape != (rows, pair.rank):
            detail = (
                f"expected [{rows}, {pair.rank}] to fit lora_A's rank, found {list(pair.up.shape)} in {file}"
            )
            problems.append(Problem(Fault.WRONG_SHAPE, pair.up.name, detail))
    for name, pair in lora.items():
        if name not in base_layout or not is_lora_target(name):
            detail = f"found in {file}, expected LoRA only on q, k, v, o and the feed-forward"
            problems.append(Problem(Fault.UNEXPECTED, pair.down.name, detail))
    return problems
