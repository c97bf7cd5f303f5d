"""What one of several ranks computes, holds and receives at full size, and how well they scale on paper.

    python benchmarks/ranks.py [--json]

Counted without a GPU: the real networks run in bf16 on tensors that have shapes but no data, as the first
rank of a group whose other members are not there. No rank holds more tokens than the first. Times are
computed from the counts and the rates below; nothing is overlapped in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from activation_memory import LiveBytes, official_networks
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from contract.video import CLIP_LATENT_FRAMES, MOTION_LATENT_FRAMES
from model.bench.clip import OFFICIAL_SHAPES, ClipShape, conditioning_inputs
from model.bench.counting import without_data
from model.parallel.arrangement import degrees
from model.parallel.bands import band
from model.parallel.collectives import Group, Pending, Purpose, Traffic
from model.parallel.conditioning import share_tokens
from model.transformer import CoInteractTransformer3DModel, Conditioning
from model.vae import decode_latents

DEVICES = (1, 2, 4, 8)
STEPS = 40

# Assumed, not measured: what an H200 reaches in bf16, and what a GPU receives while it sends as much.
MATRIX_FLOPS = 790e12
ATTENTION_FLOPS = 650e12
LINKS = {"NVLink 4": 0.8 * 450e9, "PCIe 5.0 x16": 0.8 * 63e9, "PCIe 4.0 x16": 0.8 * 31.5e9}


@dataclass(frozen=True)
class CountingGroup(Group):
    """A group whose other ranks are not there: what they would send has a size and no content."""

    def exchange(
        self, send: torch.Tensor, sent: Sequence[int], received: Sequence[int], purpose: Purpose
    ) -> Pending:
        others = sum(received) - received[self.index]
        self.traffic.received[purpose] += others * send.element_size()
        return Pending(send.new_empty(sum(received)), None, send)

    def gather(self, mine: torch.Tensor, purpose: Purpose) -> torch.Tensor:
        self.traffic.received[purpose] += (self.size - 1) * mine.nbytes
        return mine.new_empty(self.size, *mine.shape)


@dataclass(frozen=True)
class Counted:
    """One pass of the first rank, and decoding a clip there."""

    devices: int
    passes: int
    """Of a step, one after the other."""
    tokens: int
    matrix_flop: float
    attention_flop: float
    received_bytes: int
    """In a step."""
    denoising_peak_bytes: int
    decoding_flop: float
    decoding_peak_bytes: int

    def step_seconds(self, link: float) -> float:
        computing = self.matrix_flop / MATRIX_FLOPS + self.attention_flop / ATTENTION_FLOPS
        return self.passes * computing + self.received_bytes / link


def linear_gelu_flop(states: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(states) * weight[0]


def attention_flop(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    return 4 * prod(query) * key[-2]


def counter() -> FlopCounterMode:
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.cointeract.linear_gelu: linear_gelu_flop,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop,
        },
    )


def flop(mode: FlopCounterMode, attention: bool) -> float:
    operations = mode.get_flop_counts()["Global"].items()
    return float(sum(count for op, count in operations if ("attention" in str(op)) == attention))


def count(
    model: CoInteractTransformer3DModel, vae: AutoencoderKLWan, shape: ClipShape, devices: int
) -> Counted:
    """A clip after the first, with product and pose."""
    draw = without_data(torch.bfloat16)
    guidance, sequence = degrees(devices, guided=True)
    traffic = Traffic()
    group = CountingGroup(None, sequence, 0, traffic)  # type: ignore[arg-type]
    partners = CountingGroup(None, guidance, 0, traffic)  # type: ignore[arg-type]

    def prepare() -> Conditioning:
        whole = model.prepare_conditioning(
            conditioning_inputs(model, shape, draw),
            num_latent_frames=CLIP_LATENT_FRAMES,
            keep_key_values=True,
        )
        return share_tokens(whole, group) if sequence > 1 else whole

    passes = 2 // guidance
    with LiveBytes(model) as denoising, torch.no_grad():
        prepared = [prepare() for _ in range(passes)]
        prepared = [one.sharing(prepared[0]) for one in prepared]
        traffic.received.clear()
        with counter() as pass_flop:
            velocity = model(draw(*shape.latents(CLIP_LATENT_FRAMES)), 500.0, prepared[0]).sample
        received = passes * traffic.received.total()
        if guidance > 1:
            traffic.received.clear()
            partners.gather(velocity, Purpose.VELOCITY)
            received += traffic.received.total()
    size = shape.latents(MOTION_LATENT_FRAMES + CLIP_LATENT_FRAMES)
    inner = 0 if devices < 3 else 1  # is wider
    own = band(vae, *size[-2:], devices, inner) if devices > 1 else None

    def decode() -> torch.Tensor:
        return decode_latents(vae, draw(*size), keep_from=MOTION_LATENT_FRAMES, band=own)

    with LiveBytes(vae) as decoding, torch.no_grad():
        decode()
    with counter() as decoding_flop, torch.no_grad():  # apart, because the counter keeps tensors alive
        decode()
    return Counted(
        devices=devices,
        passes=passes,
        tokens=prepared[0].layout.video,
        matrix_flop=flop(pass_flop, attention=False),
        attention_flop=flop(pass_flop, attention=True),
        received_bytes=received,
        denoising_peak_bytes=denoising.peak,
        decoding_flop=flop(decoding_flop, attention=False) + flop(decoding_flop, attention=True),
        decoding_peak_bytes=decoding.peak,
    )


def table(name: str, counts: Sequence[Counted]) -> str:
    alone = counts[0]
    lines = [f"## {name}", "", f"| devices | {' | '.join(str(c.devices) for c in counts)} |"]
    lines.append("|---" * (len(counts) + 1) + "|")

    def row(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    row("tokens of a rank", [f"{c.tokens:,}" for c in counts])
    row("PFLOP of a rank in a step, matrix + attention", [f"{work(c):.2f}" for c in counts])
    row("GB received in a step", [f"{c.received_bytes / 1e9:.1f}" for c in counts])
    row("peak while denoising, GB", [f"{c.denoising_peak_bytes / 1e9:.1f}" for c in counts])
    row("PFLOP of decoding", [f"{c.decoding_flop / 1e15:.2f}" for c in counts])
    row("peak while decoding, GB", [f"{c.decoding_peak_bytes / 1e9:.1f}" for c in counts])
    for link, rate in LINKS.items():
        times = [c.step_seconds(rate) for c in counts]
        row(f"{link}: seconds of a step", [f"{seconds:.2f}" for seconds in times])
        gains = [times[0] / seconds for seconds in times]
        row(
            f"{link}: speed-up (efficiency)",
            [f"{g:.2f} ({g / c.devices:.0%})" for g, c in zip(gains, counts, strict=True)],
        )
    row(
        "decoding: work of one device / of a rank",
        [f"{alone.decoding_flop / c.decoding_flop:.2f}" for c in counts],
    )
    return "\n".join(lines)


def work(counted: Counted) -> float:
    return counted.passes * (counted.matrix_flop + counted.attention_flop) / 1e15


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what one of several ranks does at full size.")
    parser.add_argument("--json", action="store_true", help="the counts alone, as JSON")
    as_json = parser.parse_args().json
    found: dict[str, list[Counted]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, vae = official_networks()
        for shape in OFFICIAL_SHAPES:
            found[shape.size] = [count(model, vae, shape, devices) for devices in DEVICES]
    if as_json:
        sys.stdout.write(
            json.dumps({name: [asdict(c) for c in counts] for name, counts in found.items()}) + "\n"
        )
    else:
        sys.stdout.write("\n\n".join(table(name, counts) for name, counts in found.items()) + "\n")


if __name__ == "__main__":
    main()
