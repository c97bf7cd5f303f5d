"""Rank 0 leads a clip and the others follow. It sends the inputs, and after every step whether to go on.

Only rank 0 hears of canceled jobs and of signals to stop. Between two clips the others wait for its message.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Final

import numpy as np
import torch

from contract.frozen import Frozen
from contract.job import Stage
from contract.params import GenerationParams
from model.clip import ClipInputs, ClipRenderer, OnStep, Rendered
from model.parallel.collectives import Purpose
from model.parallel.ranks import Ranks

GO_ON: Final = b"go on"
ABANDON: Final = b"abandon"
END: Final = b"end"

_DTYPES: Final = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class OutOfStep(RuntimeError):
    """A clip broke off where the other ranks cannot know it. All the worker's processes must start again."""


class _Abandoned(Exception):
    """Rank 0 has given the clip up."""


class _TensorShape(Frozen):
    shape: tuple[int, ...]
    dtype: str


class _ClipHeader(Frozen):
    """`ClipInputs` without the values of its tensors."""

    params: GenerationParams
    tensors: dict[str, _TensorShape]


def lead(renderer: ClipRenderer, inputs: ClipInputs, on_step: OnStep) -> tuple[Rendered, np.ndarray]:
    """Render a clip as rank 0, or alone. Also returns its frames.

    Raises:
        OutOfStep: some rank failed, or this one failed outside `on_step`. torch's own errors about memory or
            the device are raised unchanged, and mean the same.
    """
    ranks = renderer.ranks
    told = False

    def step(stage: Stage, finished: int) -> None:
        nonlocal told
        if ranks is None:
            on_step(stage, finished)
            return
        try:
            on_step(stage, finished)
        except BaseException:
            ranks.control.tell(ABANDON)
            told = True
            raise
        ranks.control.tell(GO_ON)

    try:
        if ranks is not None:
            _send(inputs, ranks)
        rendered = renderer.render(inputs, step)
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError):
        raise
    except Exception as error:
        if ranks is None or told:
            raise
        raise OutOfStep(f"{type(error).__name__}: {error}") from error
    if rendered.frames is None:
        raise OutOfStep("only rank 0 can lead")
    return rendered, rendered.frames


def follow(renderer: ClipRenderer, ranks: Ranks) -> None:
    """Render clips together with rank 0 until it sends `END`. Any error raised here ends all ranks."""

    def step(stage: Stage, finished: int) -> None:
        if ranks.control.hear() == ABANDON:
            raise _Abandoned

    while (message := ranks.control.hear()) != END:
        inputs = _receive(_ClipHeader.model_validate_json(message), ranks)
        with suppress(_Abandoned):
            renderer.render(inputs, step)


def _send(inputs: ClipInputs, ranks: Ranks) -> None:
    tensors = _tensors(inputs)
    shapes = {
        name: _TensorShape(shape=tuple(tensor.shape), dtype=str(tensor.dtype))
        for name, tensor in tensors.items()
    }
    header = _ClipHeader(params=inputs.params, tensors=shapes)
    ranks.control.tell(header.model_dump_json().encode())
    for tensor in tensors.values():
        ranks.world.broadcast(tensor.contiguous(), Purpose.INPUTS)


def _receive(header: _ClipHeader, ranks: Ranks) -> ClipInputs:
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(_tensor_names())
    for name, like in header.tensors.items():
        tensor = torch.empty(like.shape, dtype=_DTYPES[like.dtype], device=ranks.device)
        ranks.world.broadcast(tensor, Purpose.INPUTS)
        tensors[name] = tensor
    return ClipInputs(params=header.params, **tensors)  # type: ignore[arg-type]


def _tensors(inputs: ClipInputs) -> dict[str, torch.Tensor]:
    named = {name: getattr(inputs, name) for name in _tensor_names()}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _tensor_names() -> list[str]:
    return [field.name for field in fields(ClipInputs) if field.name != "params"]
