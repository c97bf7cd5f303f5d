"""Everything to measure on a GPU in one short run: no weights and no network needed.

    python benchmarks/gpu.py [--seconds 540] [--output FOLDER] [--parts toy,forward,parts]
    python benchmarks/gpu.py --device cpu --tiny          the same on small networks, to see that it runs

Parts, in order of worth: the bundled checkpoint on the GPU in every memory mode against the CPU; forwards of
the official size with random weights against their floor, whole and in parts, with their peaks beside the
memory model's; the feed-forward in 8 bits; attention backends at each size; VAE and encoders; presets of the
bundled checkpoint; a short job; a trace for Perfetto; blocks that stream from main memory; blocks compiled by
torch. A part whose price exceeds the time that is left is skipped, one that takes twice its price is ended,
an error ends its own part only, and every finding is a line of JSON at once (also in FOLDER/gpu.jsonl).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention import FeedForward
from torch import nn
from transformers import (
    AutoTokenizer,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from contract.attention import AttentionBackend
from contract.card import OFFICIAL_DEFAULTS
from contract.choices import Preset
from contract.memory import MemoryMode
from contract.presets import preset_steps
from contract.sampling import noise_levels
from deploy.samples import BUNDLED_CHECKPOINT
from model.attention_choice import AttentionShape, choose_attention
from model.attention_choice import measure as measure_attention
from model.bench.clip import OFFICIAL_SHAPES, ClipShape
from model.bench.forward import MEASURED_TIMESTEPS, measure_forward
from model.bench.parts import job_inputs, job_params, measure_job, measure_parts
from model.bench.timing import spend
from model.bench.trace import trace_forward
from model.calibration import psnr
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.checkpoints.official_names import dit_config
from model.checkpoints.tiny import tiny_pipeline
from model.fp8_choice import why_not_fp8
from model.memory.lanes import lanes_of
from model.memory.needs import OFFICIAL_SIZE, PART_TOKENS, Plan, needed, tokens
from model.memory.offload import stream_weights
from model.network.feed_forward import feed_forward
from model.network.fp8_linear import Fp8Linear, quantize_rows
from model.pipeline import CoInteractPipeline
from model.transformer import CoInteractTransformer3DModel

PRICES_S = {
    "toy": 60,
    "forward": 150,
    "fp8": 15,
    "attention": 10,
    "parts": 60,
    "presets": 30,
    "job": 100,
    "profile": 30,
    "offload": 80,
    "compile": 120,
}
LIMIT = 2.0
"""Times its price after which a part is ended."""
TINY_LIMIT_S = 600.0
TEXT = UMT5Config(
    vocab_size=256384,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)
SPEECH = Wav2Vec2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    apply_spec_augment=False,
)


def filled(build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> Any:
    """A network built without data → random weights of about unit gain on the device, none in main memory."""
    with init_empty_weights():  # buffers are computed
        module = build()
    in_full = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}  # weights that are tied stay so
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        if id(old) not in made:
            wanted = torch.float32 if any(part in name for part in in_full) else dtype
            values = torch.empty(old.shape, device=device, dtype=wanted)
            if old.ndim < 2 or name.endswith("gamma"):
                values.fill_(1.0 if name.endswith(("weight", "gamma")) else 0.0)
            else:
                values.normal_(0, min(0.3, old[0].numel() ** -0.5), generator=generator)
            made[id(old)] = nn.Parameter(values, requires_grad=False)
        parent, _, own = name.rpartition(".")
        module.get_submodule(parent)._parameters[own] = made[id(old)]
    return module.to(device).eval()


def full_size(device: torch.device, dtype: torch.dtype) -> CoInteractPipeline:
    """The official networks with random weights, all on the device."""
    return CoInteractPipeline(
        transformer=filled(
            lambda: CoInteractTransformer3DModel(**dit_config({}, hoi_branch=False)), device, dtype
        ),
        vae=filled(AutoencoderKLWan, device, dtype),
        text_encoder=filled(lambda: UMT5EncoderModel(TEXT), device, dtype),
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED_CHECKPOINT / "tokenizer", local_files_only=True),
        audio_encoder=filled(lambda: Wav2Vec2Model(SPEECH), device, torch.float32),
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


class Run:
    """What the parts share."""

    def __init__(self, device: torch.device, tiny: bool, seconds: float, output: Path) -> None:
        self.device, self.tiny, self.output = device, tiny, output
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.shapes = (ClipShape(64, 96, pose=True),) if tiny else OFFICIAL_SHAPES
        self._until = time.monotonic() + seconds
        self._pipeline: CoInteractPipeline | None = None

    @property
    def left(self) -> float:
        return self._until - time.monotonic()

    def say(self, part: str, **facts: object) -> None:
        line = json.dumps({"part": part, "left_s": round(self.left, 1), **facts}, default=str)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with (self.output / "gpu.jsonl").open("a") as log:
            log.write(line + "\n")

    def pipeline(self) -> CoInteractPipeline:
        """Built once, with its attention backend chosen on the larger size."""
        if self._pipeline is None:
            made = tiny_pipeline() if self.tiny else full_size(self.device, self.dtype)
            made.to(self.device)
            largest = self.shapes[-1]
            choice = choose_attention(
                made.transformer,
                AttentionBackend.AUTO,
                tokens(largest.width, largest.height),
                self.device,
                self.dtype,
            )
            self.say("attention", **choice.report().model_dump(mode="json"))
            for found in choice.measured:
                if found.why_not:
                    self.say("attention", backend=found.backend, why_not=found.why_not)
            self._pipeline = made
        return self._pipeline

    def drop_pipeline(self) -> None:
        self._pipeline = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def part_toy(run: Run) -> None:
    """Two clips of the trained small checkpoint: on the CPU, and here in every mode."""
    shape = ClipShape(128, 80, pose=False)
    params = job_params(
        shape, 1 if run.tiny else 2, 1 if run.tiny else 4, read_card(BUNDLED_CHECKPOINT).defaults
    )

    def frames(pipeline: CoInteractPipeline) -> np.ndarray:
        clips = pipeline.generate_clips(job_inputs(shape, params), params)
        return np.concatenate([clip.frames for clip in clips])

    expected = frames(load_pipeline(BUNDLED_CHECKPOINT))
    for mode in MemoryMode:
        for dtype in dict.fromkeys((torch.float32, run.dtype)):
            found = frames(load_pipeline(BUNDLED_CHECKPOINT, run.device, dtype, memory=mode))
            apart = np.abs(found.astype(np.int16) - expected)
            run.say(
                "toy",
                mode=mode,
                dtype=str(dtype),
                mean_levels=float(apart.mean()),
                most_levels=int(apart.max()),
            )


def part_forward(run: Run) -> None:
    for shape in run.shapes:
        for timestep in MEASURED_TIMESTEPS:
            say_forward(run, "forward", shape, timestep, Plan(MemoryMode.RESIDENT), rounds=3)
        run.pipeline().transformer.part_tokens = PART_TOKENS
        try:
            plan = Plan(MemoryMode.RESIDENT, in_parts=True)
            say_forward(run, "forward", shape, MEASURED_TIMESTEPS[0], plan, rounds=2)
        finally:
            run.pipeline().transformer.part_tokens = None


def say_forward(run: Run, part: str, shape: ClipShape, timestep: float, plan: Plan, rounds: int) -> None:
    figures = measure_forward(run.pipeline(), shape, timestep, rounds)
    modelled = needed(OFFICIAL_SIZE, plan, shape.width, shape.height).gpu
    run.say(part, **asdict(figures), in_parts=plan.in_parts, modelled_bytes=modelled)


def part_attention(run: Run) -> None:
    """Every backend at each size; the first line of all says which one the forwards run on."""
    config = run.pipeline().transformer.config
    for shape in run.shapes:
        count = tokens(shape.width, shape.height)
        attention = AttentionShape(count, config.num_attention_heads, config.attention_head_dim)
        for found in measure_attention(attention, run.device, run.dtype):
            rate = None if found.seconds is None else attention.flop / found.seconds / 1e12
            run.say(
                "attention", size=shape.size, backend=found.backend, teraflops=rate, why_not=found.why_not
            )


def part_presets(run: Run) -> None:
    """One clip of the trained small checkpoint in each preset that it has, against the exact one."""
    pipeline = load_pipeline(BUNDLED_CHECKPOINT, run.device, run.dtype)
    card, shape = read_card(BUNDLED_CHECKPOINT), ClipShape(128, 80, pose=False)
    steps = 4 if run.tiny else card.defaults.num_inference_steps
    exact = job_params(shape, 1, steps, card.defaults)
    levels = noise_levels(steps, exact.flow_shift)
    right: np.ndarray | None = None
    for preset in (Preset.EXACT, Preset.BALANCED, Preset.FAST):
        chosen = {"preset": preset, "computed_steps": preset_steps(card, preset, levels)}
        params = exact.model_copy(update=chosen)
        began = time.perf_counter()
        [clip] = pipeline.generate_clips(job_inputs(shape, params), params)
        seconds = time.perf_counter() - began
        right = clip.frames if right is None else right
        run.say(
            "presets",
            preset=preset,
            computed=steps if params.computed_steps is None else len(params.computed_steps),
            steps=steps,
            seconds=seconds,
            psnr_db=psnr(clip.frames, right),
        )


def part_parts(run: Run) -> None:
    for shape in run.shapes:
        for figures in measure_parts(run.pipeline(), shape, rounds=2):
            run.say("parts", size=shape.size, **asdict(figures))


def part_job(run: Run) -> None:
    shape = run.shapes[0]
    run.say("job", **asdict(measure_job(run.pipeline(), shape, job_params(shape, 2, 4, OFFICIAL_DEFAULTS))))


def part_offload(run: Run) -> None:
    """The blocks of the same network stream from main memory."""
    pipeline = run.pipeline()
    pipeline.transformer.to("cpu")
    pipeline.text_encoder.to("cpu")
    pipeline.streams = stream_weights(
        pipeline.text_encoder, pipeline.transformer, MemoryMode.OFFLOAD, run.device, lanes_of(run.device)
    )
    gc.collect()
    try:
        for shape in run.shapes:
            say_forward(run, "offload", shape, MEASURED_TIMESTEPS[0], Plan(MemoryMode.OFFLOAD), rounds=2)
    finally:
        run.drop_pipeline()


def part_compile(run: Run) -> None:
    """The blocks compiled by torch around our kernels, at the smaller size."""
    shape, backend = run.shapes[0], "inductor" if run.device.type == "cuda" else "aot_eager"
    began = time.perf_counter()
    try:
        run.pipeline().transformer.compile_repeated_blocks(backend=backend)
        plan = Plan(MemoryMode.RESIDENT)
        say_forward(run, "compile", shape, MEASURED_TIMESTEPS[0], plan, rounds=2)
        run.say("compile", size=shape.size, backend=backend, all_s=time.perf_counter() - began)
    finally:
        run.drop_pipeline()


@torch.no_grad()
def part_fp8(run: Run) -> None:
    """A feed-forward as it is, with weights in 8 bits that are expanded, and multiplied in 8 bits."""
    run.say("fp8", why_not=why_not_fp8(run.device))
    config = run.pipeline().transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    plain = filled(
        lambda: FeedForward(width, inner_dim=config.ffn_dim, activation_fn="gelu-approximate"),
        run.device,
        run.dtype,
    )
    eight = copy.deepcopy(plain)
    eight.net[0].proj, eight.net[2] = in_eight_bits(plain.net[0].proj), in_eight_bits(plain.net[2])
    for shape in run.shapes:
        count = tokens(shape.width, shape.height)
        states = torch.randn(1, count, width, device=run.device, dtype=run.dtype)
        expected = feed_forward(plain, states).float()
        for module, in_fp8 in ((plain, False), (eight, False), (eight, True)):
            for layer in (eight.net[0].proj, eight.net[2]):
                layer.computes_in_fp8 = in_fp8
            spent = spend(partial(feed_forward, module, states), run.device, rounds=3)
            error = (feed_forward(module, states).float() - expected).norm() / expected.norm()
            run.say(
                "fp8",
                size=shape.size,
                weights="bf16" if module is plain else "fp8",
                computed_in_fp8=in_fp8,
                seconds=spent.seconds,
                teraflops=4 * count * width * config.ffn_dim / spent.on(run.device) / 1e12,
                relative_error=float(error),
            )


def in_eight_bits(layer: nn.Linear) -> Fp8Linear:
    made = Fp8Linear(layer.in_features, layer.out_features)
    made.weight, made.weight_scale = quantize_rows(layer.weight)
    made.bias = layer.bias
    return made


def part_profile(run: Run) -> None:
    path = run.output / "forward.json"
    trace_forward(run.pipeline(), run.shapes[0], MEASURED_TIMESTEPS[0], path)
    run.say("profile", trace=path, bytes=path.stat().st_size)


PARTS: dict[str, Callable[[Run], None]] = {
    "toy": part_toy,
    "forward": part_forward,
    "fp8": part_fp8,
    "attention": part_attention,
    "parts": part_parts,
    "presets": part_presets,
    "job": part_job,
    "profile": part_profile,
    "offload": part_offload,
    "compile": part_compile,
}


class TooLong(Exception):
    """A part has taken its time and more."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TooLong in the block after so many seconds."""

    def end(*_: object) -> None:
        raise TooLong(f"ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, for a dry run")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(torch.device(options.device), options.tiny, options.seconds, options.output)
    on_gpu = run.device.type == "cuda"
    name = torch.cuda.get_device_name(run.device) if on_gpu else "CPU"
    run.say("machine", device=name, torch=torch.__version__, cuda=torch.version.cuda)
    failed = 0
    for part in options.parts.split(","):
        if run.left < PRICES_S[part] and not run.tiny:
            run.say(part, skipped=f"it takes up to {PRICES_S[part]} s")
            continue
        began = time.monotonic()
        try:
            with limited(TINY_LIMIT_S if run.tiny else min(LIMIT * PRICES_S[part], run.left)):
                PARTS[part](run)
            run.say(part, took_s=round(time.monotonic() - began, 1))
        except Exception as error:  # noqa: BLE001 (a borrowed GPU: the other parts must still be measured)
            failed += 1
            run.say(part, error=f"{type(error).__name__}: {error}", where=traceback.format_exc(limit=-4))
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
