"""Compile the kernels for an H100 on a machine without one; count the variants of a walk through layouts.

Triton's launcher is stopped behind the compiler, and what it would have computed comes from the references.
Run as a process of its own: Triton must not be in its interpreter's mode here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from model.kernels.triton.eight_bits import launch_rows_to_eight_bits
from model.kernels.triton.vae_norm import launch_norm_silu
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs
from tests.model.kernels.patched import OPERATIONS, replace_operations

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 32,
    "text_dim": 8,
    "freq_dim": 16,
    "audio_dim": 8,
    "num_layers": 2,
    "audio_inject_layers": (0,),
    "expert_hidden_dim": 8,
}
WIDTH, INNER_WIDTH, HEADS = 5120, 13824, 40


class Hopper:
    """A driver that names a card and can do nothing else."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


COMPILED: list[tuple[str, Any]] = []
"""Kernel and what each launch would have run."""


def compile_only(run: Callable[..., Any]) -> Callable[..., Any]:
    def launch(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        COMPILED.append((self.fn.__name__, kernel))
        return kernel

    return launch


def reference_behind(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        kernel(*arguments)
        return reference(*arguments)

    return call


def layouts() -> Iterator[dict[str, Any]]:
    """Clip 0, later clips, without product, with pose, other sizes, several samples."""
    for height, width in ((8, 8), (8, 12), (16, 10)):
        for product in (False, True):
            for motion in (False, True):
                yield {"size": (height, width), "product": product, "motion": motion}
    yield {"size": (8, 8), "pose": True}
    yield {"size": (8, 8), "samples": 2, "product": True}
    yield {"size": (8, 8), "frames": 1, "product": True, "motion": True}


def forward(
    model: CoInteractTransformer3DModel,
    size: tuple[int, int],
    product: bool = False,
    motion: bool = False,
    pose: bool = False,
    samples: int = 1,
    frames: int = 2,
) -> None:
    def latents(count: int) -> torch.Tensor:
        return torch.randn(samples, 16, count, *size, dtype=torch.bfloat16)

    given = ConditioningInputs(
        person_latents=latents(1),
        product_latents=latents(1) if product else None,
        motion_latents=latents(19) if motion else None,
        pose_latents=latents(frames) if pose else None,
        encoder_hidden_states=torch.randn(samples, 5, 8, dtype=torch.bfloat16),
        audio_embeds=torch.randn(samples, 25, 8, 4 * frames, dtype=torch.bfloat16),
    )
    conditioning = model.prepare_conditioning(given, num_latent_frames=frames)
    for timestep in (950.0, 500.0):
        model(latents(frames), timestep, conditioning)


def full_width() -> None:
    """Each operation once at the real width."""

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16)

    half = rows(1, 8, WIDTH // 2)
    states, weight, modulation = rows(1, 8, WIDTH), rows(WIDTH), torch.randn(1, 2, 6, WIDTH)
    arguments = {
        "rms_norm": (states, weight, 1e-6),
        "norm_rotary": (states, states, weight, weight, torch.randn(8, 64, 2), HEADS, 1e-6),
        "norm_modulate": (states, modulation, 0, 1, 4, 1e-6),
        "add_norm_modulate": (states, states, modulation, 3, 4, 4, 1e-6),
        "gated_add": (states, states, modulation, 5, 4, torch.randn(1, 4, 3), states[:, :4], states[:, :4]),
        "gated_add_norm": (states, states, modulation, 2, 4, weight, weight, 1e-6),
        "router_logits": (half, half[0, 0], half[0, 0], rows(3, WIDTH // 2), rows(3), 1e-5),
    }
    for name, (_, kernel) in OPERATIONS.items():
        kernel(*arguments[name])
    frames = rows(1, 96, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    launch_norm_silu(frames, rows(96), frames[:, :, :2], True)
    launch_rows_to_eight_bits(rows(8, INNER_WIDTH), True)


def spilled_bytes(kernel: Any) -> int:
    """Bytes per thread that did not fit in registers and lie in memory instead."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = dict(part.split(":") for part in said.stdout.split() if part.count(":") == 1)
    return int(used["STACK"]) + int(used["LOCAL"])


def variants() -> dict[str, int]:
    distinct: dict[str, set[str]] = {}
    for name, kernel in COMPILED:
        distinct.setdefault(name, set()).add(kernel.hash)
    return {name: len(hashes) for name, hashes in distinct.items()}


@torch.no_grad()
def main() -> None:
    triton.runtime.driver.set_active(Hopper())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(JITFunction, "run", compile_only(JITFunction.run))
        full_width()
        spilled = {name: spilled_bytes(kernel) for name, kernel in COMPILED}
        vectorised = {name: "ld.global.v4" in kernel.asm["ptx"] for name, kernel in COMPILED}
        COMPILED.clear()
        replace_operations(monkeypatch, reference_behind)
        model = CoInteractTransformer3DModel(**TINY).eval()
        for name, parameter in model.named_parameters():  # as a checkpoint is loaded: some stay in fp32
            if not any(kept in name for kept in model._keep_in_fp32_modules or ()):
                parameter.data = parameter.data.to(torch.bfloat16)
        counts = []
        for layout in layouts():
            forward(model, **layout)
            counts.append(variants())
    found = {"spilled": spilled, "vectorised": vectorised, "first": counts[0], "last": counts[-1]}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
