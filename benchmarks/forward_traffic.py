"""Bytes that one transformer forward moves outside its matrix products, and its launches, at full size.

    python benchmarks/forward_traffic.py [--json]

Counted without a GPU: the real network runs in bf16 on tensors that have shapes but no data. An operation
that makes no new tensor but only another view of one is free. Every other one is a launch; it reads its
inputs and writes its outputs once, at the size they have, broadcast inputs at the size they are stored in.
Matrix products, convolutions and attention are launches, too, but their traffic is not counted: it hides
behind their arithmetic.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model.checkpoints.official_names import dit_config
from model.transformer import CoInteractTransformer3DModel, Conditioning, ConditioningInputs

SIZES = {"720x1280": (1280, 720), "480x832": (832, 480)}
TIMESTEPS = (500.0, 950.0)
MATRIX = ("addmm", "mm", "bmm", "baddbmm", "convolution", "attention", "linear_gelu")
"""Parts of names: operations bound by arithmetic."""

ONE_KERNEL = (F.rms_norm,)
"""A GPU runs each of these as one kernel; on tensors without data they fall into several operations."""


class Traffic(TorchDispatchMode):
    """Counts launches and bytes by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.silent = False

    def add(self, name: str, arguments: Any, result: Any) -> None:
        read = {id(value): value for value in tree_iter(arguments) if isinstance(value, torch.Tensor)}
        written = [value for value in tree_iter(result) if isinstance(value, torch.Tensor)]
        self.launches[name] += 1
        if not any(part in name for part in MATRIX):
            self.bytes[name] += sum(stored_bytes(value) for value in (*read.values(), *written))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.silent and does_work(func, (args, kwargs), result):
            self.add(func.name().removesuffix(".default"), (args, kwargs), result)
        return result


class Composites(TorchFunctionMode):
    """Counts what is one kernel on a GPU as one."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ONE_KERNEL:
            return func(*args, **(kwargs or {}))
        self.traffic.silent = True
        result = func(*args, **(kwargs or {}))
        self.traffic.silent = False
        self.traffic.add(func.__name__, (args, kwargs), result)
        return result


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes behind a tensor's elements; those repeated by a stride of 0 count once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def does_work(func: Any, arguments: Any, result: Any) -> bool:
    """Whether an operation launches a kernel: it writes into an argument, or into memory of its own."""
    if func.namespace == "prim" or "empty" in func.name():
        return False
    if any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in func._schema.arguments
    ):
        return True
    given = {
        value.untyped_storage()._cdata for value in tree_iter(arguments) if isinstance(value, torch.Tensor)
    }
    made = [value for value in tree_iter(result) if isinstance(value, torch.Tensor)]
    return any(value.untyped_storage()._cdata not in given for value in made)


def conditioning(model: CoInteractTransformer3DModel, height: int, width: int) -> Conditioning:
    """Of a clip after the first, with product and pose."""

    def latents(frames: int) -> torch.Tensor:
        return torch.empty(1, 16, frames, height // 8, width // 8, dtype=torch.bfloat16)

    inputs = ConditioningInputs(
        person_latents=latents(1),
        encoder_hidden_states=torch.empty(1, 512, 4096, dtype=torch.bfloat16),
        audio_embeds=torch.empty(1, 25, 1024, 80, dtype=torch.bfloat16),
        product_latents=latents(1),
        motion_latents=latents(19),
        pose_latents=latents(20),
    )
    return model.prepare_conditioning(inputs, num_latent_frames=20, keep_key_values=True)


@torch.no_grad()
def count(
    model: CoInteractTransformer3DModel, height: int, width: int, timestep: float
) -> tuple[int, Traffic]:
    """Tokens, and the traffic of one forward."""
    prepared = conditioning(model, height, width)
    target = torch.empty(1, 16, 20, height // 8, width // 8, dtype=torch.bfloat16)
    with Traffic() as traffic, Composites(traffic):
        model(target, timestep, prepared)
    return prepared.layout.video, traffic


def full_size_model() -> CoInteractTransformer3DModel:
    """The network in bf16 with the parts in float32 that stay so; its weights have no data."""
    torch.set_default_dtype(torch.bfloat16)
    model = CoInteractTransformer3DModel(**dit_config({}, hoi_branch=False))
    torch.set_default_dtype(torch.float32)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="all operations, as JSON")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = full_size_model()
        for size, (height, width) in SIZES.items():
            for timestep in TIMESTEPS:
                tokens, traffic = count(model, height, width, timestep)
                figures[f"{size} t={timestep:g}"] = {
                    "tokens": tokens,
                    "launches": traffic.launches.total(),
                    "gigabytes": round(traffic.bytes.total() / 1e9, 1),
                    "operations": {
                        name: [traffic.launches[name], round(size / 1e9, 1)]
                        for name, size in traffic.bytes.most_common()
                    },
                }
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    sys.stdout.write("| one forward | tokens | launches | elementwise traffic |\n|---|---|---|---|\n")
    for label, found in figures.items():
        sys.stdout.write(
            f"| {label} | {found['tokens']:,} | {found['launches']:,} | {found['gigabytes']:,} GB |\n"
        )


if __name__ == "__main__":
    main()
