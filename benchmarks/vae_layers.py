"""CPU seconds of coding a few frames with diffusers' VAE layers and with ours, same weights, in turns.

python benchmarks/vae_layers.py [--checkpoint deploy/checkpoint]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from deploy.samples import BUNDLED_CHECKPOINT
from model.vae import decode_latents, encode_pixels
from model.vae_layers import use_fast_layers

ROUNDS = 3


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(name: str, plain: AutoencoderKLWan, sizes: tuple[tuple[int, int], ...]) -> None:
    fast = use_fast_layers(copy.deepcopy(plain))
    for height, width in sizes:
        for latent_frames in (1, 3):
            latents = torch.randn(1, 16, latent_frames, height, width)
            pixels = torch.rand(1, 3, 4 * latent_frames - 3, 8 * height, 8 * width) * 2 - 1
            cells = []
            for run, given in ((encode_pixels, pixels), (decode_latents, latents)):
                spent = [
                    [cpu_seconds(lambda v=vae, r=run, g=given: r(v, g)) for vae in (plain, fast)]
                    for _ in range(ROUNDS)
                ]
                theirs, ours = (min(seconds) for seconds in zip(*spent, strict=True))
                cells.append(f"{ours:.3f} / {theirs:.3f} = {ours / theirs:.2f}")
            sys.stdout.write(
                f"| {name} | {pixels.shape[2]} × {8 * height}×{8 * width} | {' | '.join(cells)} |\n"
            )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED_CHECKPOINT)
    checkpoint = parser.parse_args().checkpoint
    sys.stdout.write(
        "| VAE | frames | encode: ours / diffusers | decode: ours / diffusers |\n|---|---|---|---|\n"
    )
    torch.manual_seed(0)
    compare(checkpoint.name, AutoencoderKLWan.from_pretrained(checkpoint / "vae").eval(), ((10, 16),))
    compare("base_dim 8", AutoencoderKLWan(base_dim=8).eval(), ((10, 16),))
    compare("Wan 2.1, full width", AutoencoderKLWan().eval(), ((4, 6), (8, 8)))


if __name__ == "__main__":
    main()
