"""Peak memory of the activations at full size, counted without a GPU or the memory: see docs/weights.md.

    python benchmarks/activation_memory.py

The real networks run in bf16 on tensors that have shapes but no data; every storage is counted from its
creation to its release. What a GPU needs beyond that (kernels' workspaces, allocator gaps) is in the memory
model's margin.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model.checkpoints.official_names import dit_config
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs
from model.vae import decode_latents, encode_pixels
from model.vae_layers import use_fast_layers

SIZES = {"480x832": (480, 832), "720x1280": (720, 1280)}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are alive, and their peak."""

    def __init__(self, weights: torch.nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Views of weights are no new memory.
        self.known = {tensor.untyped_storage()._cdata for tensor in weights.state_dict().values()}

    def _release(self, key: int, size: int) -> None:
        self.live -= size
        self.known.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    size = storage.nbytes()
                    self.known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._release, key, size)
        return result


def peak_bytes(weights: torch.nn.Module, run: Callable[[], object]) -> int:
    """Peak of what `run` allocates, besides the weights."""
    gc.collect()
    with LiveBytes(weights) as counter, torch.no_grad():
        run()
    return counter.peak


def transformer_peak(model: CoInteractTransformer3DModel, height: int, width: int) -> tuple[int, int]:
    """(tokens, peak bytes) of one forward as the pipeline does it: a clip after the first, with product and
    pose, the conditioning of both prompts kept.
    """
    h, w = height // 8, width // 8

    def latents(frames: int) -> torch.Tensor:
        return torch.empty(1, 16, frames, h, w, dtype=torch.bfloat16)

    tokens = 0

    def run() -> None:
        nonlocal tokens
        both = [
            model.prepare_conditioning(
                ConditioningInputs(
                    person_latents=latents(1),
                    encoder_hidden_states=torch.empty(1, 512, 4096, dtype=torch.bfloat16),
                    audio_embeds=torch.empty(1, 25, 1024, 80, dtype=torch.bfloat16),
                    product_latents=latents(1),
                    motion_latents=latents(19),
                    pose_latents=latents(20),
                ),
                num_latent_frames=20,
                keep_key_values=True,
            )
            for _ in range(2)
        ]
        both[1] = both[1].sharing(both[0])
        tokens = both[0].layout.video
        model(latents(20), 500.0, both[0])

    peak = peak_bytes(model, run)
    return tokens, peak


def gigabytes(weights: torch.nn.Module, run: Callable[[], object]) -> float:
    return round(peak_bytes(weights, run) / 1e9, 2)


def main() -> None:
    figures: dict[str, dict[str, float]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        model = CoInteractTransformer3DModel(**dit_config({}, hoi_branch=False))
        vae = use_fast_layers(AutoencoderKLWan())
        torch.set_default_dtype(torch.float32)
        for name, (height, width) in SIZES.items():
            tokens, transformer = transformer_peak(model, height, width)
            latents = torch.empty(1, 16, 39, height // 8, width // 8, dtype=torch.bfloat16)
            pixels = torch.empty(1, 3, 73, height, width, dtype=torch.bfloat16)
            figures[name] = {
                "tokens": tokens,
                "transformer_gb": round(transformer / 1e9, 2),
                "bytes_per_token": round(transformer / tokens),
                "vae_decode_gb": gigabytes(vae, lambda z=latents: decode_latents(vae, z, keep_from=19)),
                "vae_encode_gb": gigabytes(vae, lambda x=pixels: encode_pixels(vae, x)),
            }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
