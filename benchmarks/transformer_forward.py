"""Seconds and peak memory of one transformer forward: ours, diffusers' Wan, the official CoInteract code.

    python benchmarks/transformer_forward.py [--official CHECKOUT] [--rounds 5]

All contestants have the same width, layers and about as many tokens, and run by turns in one process. Ours
and the official code get the same weights and inputs, and their outputs are compared, so that speed is not
bought with accuracy. CHECKOUT is a clone of the official repository, read at run time; it needs `einops`.

CPU seconds are the process's own, over all threads: the steadier figure on a machine that others use, too.
Peak memory is measured in a process of its own, from before the first forward.
"""

import argparse
import ast
import ctypes
import gc
import importlib
import math
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from model.checkpoints.official_names import dit_config, dit_name
from model.transformer import CoInteractTransformer3DModel, ConditioningInputs

FRAMES, HEIGHT, WIDTH = 20, 16, 20  # latent size: 128×160 pixels, one clip
CONFIG: dict[str, Any] = {
    "dim": 1536,
    "in_dim": 16,
    "ffn_dim": 8960,
    "out_dim": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "num_heads": 12,
    "num_layers": 4,
    "cond_dim": 16,
    "audio_dim": 1024,
    "num_audio_token": 4,
    "audio_inject_layers": [0, 2],
}
EXPERT_HIDDEN_DIM = 256
TIMESTEPS = {"experts on (t = 500)": 500.0, "experts off (t = 950)": 950.0}

Forward = Callable[[float], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, help="clone of the official repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = ["ours", "diffusers Wan"] + (["official"] if arguments.official else [])
    if arguments.memory_of:
        sys.stdout.write(f"{peak_mebibytes(build(arguments.memory_of, arguments.official))}\n")
        return

    contestants = {name: build(name, arguments.official) for name in names}
    wan_tokens = wan_frames() * (HEIGHT // 2) * (WIDTH // 2)
    say(f"{tokens()} tokens ({wan_tokens} for diffusers' Wan), {processor()}, ")
    say(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32, ")
    say(f"{arguments.rounds} rounds\n\n")
    if arguments.official:
        for label, timestep in TIMESTEPS.items():
            ours, official = (contestants[name](timestep) for name in ("ours", "official"))
            difference, size = (ours - official).abs().max().item(), official.abs().max().item()
            say(f"largest difference from the official output, {label}: {difference:.1e} of {size:.1f}\n")
        say("\n")
    say("| one forward | " + " | ".join(names) + " |\n|---|" + "---|" * len(names) + "\n")
    for label, timestep in TIMESTEPS.items():
        measured = measure(contestants, timestep, arguments.rounds)
        for kind in ("wall", "cpu"):
            seconds = {name: sorted(getattr(run, kind) for run in runs) for name, runs in measured.items()}
            cells = [f"{statistics.median(seconds[name]):.2f} ({seconds[name][0]:.2f})" for name in names]
            say(f"| {label}, {kind} seconds, median (best) | " + " | ".join(cells) + " |\n")
    del contestants
    cells = [f"{memory(name, arguments.official):.0f} MiB" for name in names]
    say("| peak memory beyond weights and inputs | " + " | ".join(cells) + " |\n")


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass(frozen=True)
class Seconds:
    wall: float
    cpu: float


def measure(contestants: dict[str, Forward], timestep: float, rounds: int) -> dict[str, list[Seconds]]:
    """Each forward by turns, after one that warms up."""
    measured: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for warm in range(rounds + 1):
        for name, forward in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            forward(timestep)
            if warm:
                measured[name].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return measured


def memory(name: str, official: Path | None) -> float:
    """Peak memory of one contestant, MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name]
    if official:
        command += ["--official", str(official)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mebibytes(forward: Forward) -> float:
    """How far the first forwards push the process's resident size beyond where it stands now."""
    # Give back what building the network left behind, and start the high-water mark from here.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for timestep in TIMESTEPS.values():
        forward(timestep)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def build(name: str, official: Path | None) -> Forward:
    if name == "diffusers Wan":
        return build_wan()
    if name == "official":
        if official is None:
            raise ValueError("the official code is measured from a checkout: --official PATH")
        return build_official(official)
    return build_ours()


def clip() -> dict[str, torch.Tensor]:
    """Inputs of one forward; the same for everybody."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "target": normal(1, 16, FRAMES, HEIGHT, WIDTH),
        "person": normal(1, 16, 1, HEIGHT, WIDTH),
        "product": normal(1, 16, 1, HEIGHT, WIDTH),
        "motion": normal(1, 16, 19, HEIGHT, WIDTH),
        "prompt": normal(1, 512, CONFIG["text_dim"]),
        "speech": normal(1, 25, CONFIG["audio_dim"], 4 * FRAMES),
    }


def tokens() -> int:
    per_frame = (HEIGHT // 2) * (WIDTH // 2)
    motion = per_frame + (HEIGHT // 4) * (WIDTH // 4) + 4 * (HEIGHT // 8) * (WIDTH // 8)
    return (FRAMES + 2) * per_frame + motion


def wan_frames() -> int:
    """Frames that give diffusers' Wan, which has target tokens only, about as many tokens."""
    return round(tokens() / ((HEIGHT // 2) * (WIDTH // 2)))


def seeded_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Weights of about unit gain under our names, so that outputs are comparable and of ordinary size."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name in sorted(shapes):
        values = torch.randn(shapes[name], generator=generator)
        if ("norm" in name and name.endswith("weight")) or name.endswith("router.2.weight"):
            weights[name] = 1 + 0.1 * values
        elif name.endswith("layer_weights"):
            weights[name] = 0.5 + 0.1 * values
        else:
            fan_in = math.prod(values.shape[1:])
            weights[name] = values * (0.05 if values.ndim < 2 else min(0.3, fan_in**-0.5))
    return weights


def build_ours() -> Forward:
    settings = dit_config({**CONFIG, "expert_hidden_dim": EXPERT_HIDDEN_DIM}, hoi_branch=False)
    transformer = CoInteractTransformer3DModel(**settings).eval()
    shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    transformer.load_state_dict(seeded_weights(shapes), strict=True)
    given = clip()
    with torch.no_grad():  # once per clip
        conditioning = transformer.prepare_conditioning(
            ConditioningInputs(
                person_latents=given["person"],
                encoder_hidden_states=given["prompt"],
                audio_embeds=given["speech"],
                product_latents=given["product"],
                motion_latents=given["motion"],
            ),
            num_latent_frames=FRAMES,
            keep_key_values=True,
        )

    @torch.no_grad()
    def forward(timestep: float) -> torch.Tensor:
        sample: torch.Tensor = transformer(given["target"], timestep, conditioning).sample
        return sample

    return forward


def build_wan() -> Forward:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=CONFIG["num_heads"],
        attention_head_dim=CONFIG["dim"] // CONFIG["num_heads"],
        ffn_dim=CONFIG["ffn_dim"],
        num_layers=CONFIG["num_layers"],
        text_dim=CONFIG["text_dim"],
    ).eval()
    prompt = clip()["prompt"]
    latents = torch.randn(1, 16, wan_frames(), HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def forward(timestep: float) -> torch.Tensor:
        sample: torch.Tensor = transformer(latents, torch.tensor([timestep]), prompt).sample
        return sample

    return forward


def build_official(checkout: Path) -> Forward:
    """The official network and its forward function, without the rest of the package and its dependencies."""
    for name in ("diffsynth", "diffsynth.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    network = importlib.import_module("diffsynth.models.wan_video_dit_s2v")
    source = ast.parse((checkout / "diffsynth/pipelines/wan_video_new.py").read_text())
    function = next(
        node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "model_fn_wans2v"
    )
    names = {
        "torch": torch,
        "rope_precompute": network.rope_precompute,
        "sinusoidal_embedding_1d": network.sinusoidal_embedding_1d,
    }
    exec(compile(ast.Module([function], []), "wan_video_new.py", "exec"), names)
    model_fn = names["model_fn_wans2v"]

    dit = network.WanS2VModel(**CONFIG)
    with open(os.devnull, "w") as silence:  # noqa: PTH123
        stdout, sys.stdout = sys.stdout, silence
        dit.enable_moe_ffn(expert_hidden_dim=EXPERT_HIDDEN_DIM)
        sys.stdout = stdout
    theirs = dit.state_dict()
    names_of = {name: dit_name(name, CONFIG["audio_inject_layers"]) for name in theirs}
    weights = seeded_weights({ours: theirs[name].shape for name, ours in names_of.items()})
    dit.load_state_dict({name: weights[ours] for name, ours in names_of.items()}, strict=True)
    dit.eval()
    given = clip()
    latents = torch.cat([given["person"], given["target"]], dim=2)

    @torch.no_grad()
    def forward(timestep: float) -> torch.Tensor:
        output: torch.Tensor = model_fn(
            dit,
            latents,
            torch.tensor([timestep]),
            given["prompt"],
            given["speech"],
            given["motion"],
            None,
            product_image_latents=given["product"],
            drop_motion_frames=False,
        )
        return output[:, :, 1:]

    return forward


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{model} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    main()
