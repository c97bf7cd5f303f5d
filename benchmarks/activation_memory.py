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

from contract.video import CLIP_LATENT_FRAMES, MOTION_FRAMES, MOTION_LATENT_FRAMES
from model.bench.clip import OFFICIAL_SHAPES, ClipShape, conditioning_inputs
from model.bench.counting import building_in, model_without_data, without_data
from model.checkpoints.official_names import dit_config
from model.memory.needs import PART_TOKENS
from model.parallel.bands import band
from model.parallel.decoding import BANDS_IN_TURN
from model.transformer import CoInteractTransformer3DModel
from model.vae import decode_latents, encode_pixels
from model.vae_layers import use_fast_layers


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


def official_networks() -> tuple[CoInteractTransformer3DModel, AutoencoderKLWan]:
    """Transformer and VAE in bf16 without data; see `model_without_data`."""
    model = model_without_data(dit_config({}, hoi_branch=False), torch.bfloat16)
    with building_in(torch.bfloat16):
        return model, use_fast_layers(AutoencoderKLWan())


def peak_bytes(weights: torch.nn.Module, run: Callable[[], object]) -> int:
    """Peak of what `run` allocates, besides the weights."""
    gc.collect()
    with LiveBytes(weights) as counter, torch.no_grad():
        run()
    return counter.peak


def transformer_peak(model: CoInteractTransformer3DModel, shape: ClipShape) -> tuple[int, int]:
    """(tokens, peak bytes) of one forward as the pipeline does it: a clip after the first, with product and
    pose, the conditioning of both prompts kept.
    """
    draw, tokens = without_data(torch.bfloat16), 0

    def run() -> None:
        nonlocal tokens
        both = [
            model.prepare_conditioning(
                conditioning_inputs(model, shape, draw),
                num_latent_frames=CLIP_LATENT_FRAMES,
                keep_key_values=True,
            )
            for _ in range(2)
        ]
        both[1] = both[1].sharing(both[0])
        tokens = both[0].layout.video
        model(draw(*shape.latents(CLIP_LATENT_FRAMES)), 500.0, both[0])

    peak = peak_bytes(model, run)
    return tokens, peak


def gigabytes(weights: torch.nn.Module, run: Callable[[], object]) -> float:
    return round(peak_bytes(weights, run) / 1e9, 2)


def main() -> None:
    figures: dict[str, dict[str, float]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, vae = official_networks()
        draw = without_data(torch.bfloat16)
        for shape in OFFICIAL_SHAPES:
            tokens, transformer = transformer_peak(model, shape)
            model.part_tokens = PART_TOKENS
            _, in_parts = transformer_peak(model, shape)
            model.part_tokens = None
            latents = draw(*shape.latents(MOTION_LATENT_FRAMES + CLIP_LATENT_FRAMES))
            own = band(vae, latents.shape[-2], latents.shape[-1], BANDS_IN_TURN, 0)
            pixels = draw(1, 3, MOTION_FRAMES, shape.height, shape.width)
            figures[shape.size] = {
                "tokens": tokens,
                "transformer_gb": round(transformer / 1e9, 2),
                "transformer_in_parts_gb": round(in_parts / 1e9, 2),
                "bytes_per_token": round(transformer / tokens),
                "vae_decode_gb": gigabytes(
                    vae, lambda z=latents: decode_latents(vae, z, keep_from=MOTION_LATENT_FRAMES)
                ),
                "vae_decode_in_bands_gb": gigabytes(
                    vae,
                    lambda z=latents, own=own: decode_latents(
                        vae, z, keep_from=MOTION_LATENT_FRAMES, band=own
                    ),
                ),
                "vae_encode_gb": gigabytes(vae, lambda x=pixels: encode_pixels(vae, x)),
            }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
