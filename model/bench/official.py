"""Ours beside the official code: the same weights and inputs, in turns, in one process on the CPU."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from contract.params import GenerationParams
from contract.video import CLIP_FRAMES, FPS, MOTION_FRAMES, MOTION_LATENT_FRAMES, SAMPLE_RATE
from model.bench.forward import MEASURED_TIMESTEPS
from model.bench.official_code import OfficialCode, SmallNetworks, seeded_weights, silenced
from model.bench.parts import StageClock
from model.inputs import FramedInputs
from model.parity.pipeline_cases import build_pipeline, build_transformer, params_of
from model.pipeline import CoInteractPipeline
from model.transformer import ConditioningInputs

FORWARD_DIT = {
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
"""Wan's small width, where matrix products are most of a forward, as they are at full size."""
FORWARD_EXPERTS = 256
FORWARD_LATENTS = (20, 16, 20)
"""Frames, height and width: a clip of 128×160 pixels."""

JOB = SmallNetworks(
    dit={
        **FORWARD_DIT,
        "dim": 96,
        "ffn_dim": 192,
        "text_dim": 64,
        "num_heads": 4,
        "audio_dim": 32,
        "audio_inject_layers": [0, 2, 3],
    },
    expert_hidden_dim=16,
    text={
        "vocab": 384,
        "dim": 64,
        "dim_attn": 64,
        "dim_ffn": 128,
        "num_heads": 4,
        "num_layers": 3,
        "num_buckets": 32,
    },
    audio={
        "hidden_size": 32,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_feat_extract_layers": 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "vocab_size": 32,
        "apply_spec_augment": False,
        "layerdrop": 0.0,
    },
    vae_dim=8,
)
JOB_WIDTH, JOB_HEIGHT, JOB_CLIPS, JOB_STEPS = 96, 160, 3, 6
PROMPTS = ["The person lifts a glass teapot with their right hand.", "They rotate it slowly."]
NEGATIVE_PROMPT = "Blurry, worst quality, extra fingers"


@dataclass(frozen=True)
class Compared:
    """The same work by both, in CPU seconds: medians over the rounds."""

    name: str
    ours: float
    official: float
    ratios: tuple[float, ...]
    """Ours / official, round by round."""
    difference: float
    """The largest between both results, relative to the largest official value; of frames, in levels of 255.
    """

    @property
    def ratio(self) -> float:
        return self.ours / self.official


@dataclass(frozen=True)
class OfficialFigures:
    forwards: tuple[Compared, ...]
    job: Compared
    stages: dict[str, tuple[float, float]]
    """CPU seconds of the job's stages, ours and official, in the last round."""


def compare(code: OfficialCode, rounds: int, say: Callable[[str], None]) -> OfficialFigures:
    """Measure forwards and a job of three clips."""
    say("forwards, ours and official in turns")
    forwards = _compare_forwards(code, rounds)
    say("jobs of three clips, ours and official in turns")
    job, stages = _compare_jobs(code, rounds)
    return OfficialFigures(forwards, job, stages)


def _in_turns(
    name: str,
    ours: Callable[[], torch.Tensor],
    official: Callable[[], torch.Tensor],
    rounds: int,
    difference: Callable[[torch.Tensor, torch.Tensor], float],
) -> Compared:
    """Both by turns. What they make in the first is compared."""
    spent: dict[Callable[[], torch.Tensor], list[float]] = {ours: [], official: []}
    made: list[torch.Tensor] = []
    for turn in range(rounds):
        for run in (ours, official) if turn % 2 == 0 else (official, ours):
            start = time.process_time()
            result = run()
            spent[run].append(time.process_time() - start)
            if turn == 0:
                made.append(result)
    apart = difference(*made)
    ratios = tuple(a / b for a, b in zip(spent[ours], spent[official], strict=True))
    return Compared(name, statistics.median(spent[ours]), statistics.median(spent[official]), ratios, apart)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _levels(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.int() - expected.int()).abs().max())


@torch.no_grad()
def _compare_forwards(code: OfficialCode, rounds: int) -> tuple[Compared, ...]:
    official = code.transformer(FORWARD_DIT, FORWARD_EXPERTS)
    weights = seeded_weights(official, seed=0)
    ours = build_transformer(weights, {**FORWARD_DIT, "expert_hidden_dim": FORWARD_EXPERTS})
    frames, height, width = FORWARD_LATENTS
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    target, person, product = (normal(1, 16, count, height, width) for count in (frames, 1, 1))
    motion = normal(1, 16, MOTION_LATENT_FRAMES, height, width)
    prompt = normal(1, 512, int(FORWARD_DIT["text_dim"]))  # type: ignore[call-overload]
    speech = normal(1, 25, int(FORWARD_DIT["audio_dim"]), 4 * frames)  # type: ignore[call-overload]
    conditioning = ours.prepare_conditioning(  # once per clip
        ConditioningInputs(
            person_latents=person,
            encoder_hidden_states=prompt,
            audio_embeds=speech,
            product_latents=product,
            motion_latents=motion,
        ),
        num_latent_frames=frames,
        keep_key_values=True,
    )

    def our_forward(timestep: float) -> torch.Tensor:
        with torch.no_grad():
            sample: torch.Tensor = ours(target, timestep, conditioning).sample
        return sample

    def official_forward(timestep: float) -> torch.Tensor:
        with torch.no_grad():
            predicted: torch.Tensor = code.pipelines.model_fn_wans2v(
                official,
                torch.cat([person, target], dim=2),
                torch.tensor([timestep]),
                prompt,
                speech,
                motion,
                None,
                product_image_latents=product,
                drop_motion_frames=False,
            )
        return predicted[:, :, 1:]

    def compared(timestep: float) -> Compared:
        our_forward(timestep), official_forward(timestep)  # the first calls choose algorithms
        return _in_turns(
            f"a forward at t = {timestep:g}",
            lambda: our_forward(timestep),
            lambda: official_forward(timestep),
            rounds,
            _relative,
        )

    return tuple(compared(timestep) for timestep in MEASURED_TIMESTEPS)


def _compare_jobs(code: OfficialCode, rounds: int) -> tuple[Compared, dict[str, tuple[float, float]]]:
    pipe, weights = code.pipeline(JOB)
    metadata = {
        "dit_config": dict(JOB.dit),
        "expert_hidden_dim": JOB.expert_hidden_dim,
        "w2v_config": dict(JOB.audio),
        "prompts": PROMPTS,
        "negative_prompt": NEGATIVE_PROMPT,
        "steps": JOB_STEPS,
        "cfg": 7.0,
        "shift": 7.0,
        "clips": JOB_CLIPS,
    }
    described = {"meta": json.dumps(metadata)}
    inputs = _job_inputs()
    params = params_of(
        {"in.person": torch.from_numpy(inputs.person), "in.wav": torch.from_numpy(inputs.audio)}, described
    )
    ours, official = _OurJob(build_pipeline(weights, described), inputs, params), _OfficialJob(pipe, inputs)
    compared = _in_turns("a job of three clips", ours.run, official.run, rounds, _levels)
    names = sorted({*ours.stages, *official.stages})
    return compared, {name: (ours.stages.get(name, 0.0), official.stages.get(name, 0.0)) for name in names}


def _job_inputs() -> FramedInputs:
    random = np.random.default_rng(0)
    shape = (JOB_HEIGHT, JOB_WIDTH, 3)
    samples = JOB_CLIPS * CLIP_FRAMES * SAMPLE_RATE // FPS
    return FramedInputs(
        person=random.integers(0, 256, shape, np.uint8),
        product=random.integers(0, 256, shape, np.uint8),
        audio=(0.1 * random.standard_normal(samples)).astype(np.float32),
        pose_frames=None,
    )


class _OurJob:
    """In parity, so that both make the same frames."""

    def __init__(self, pipeline: CoInteractPipeline, inputs: FramedInputs, params: GenerationParams) -> None:
        self._pipeline, self._inputs, self._params = pipeline, inputs, params
        self.stages: dict[str, float] = {}

    def run(self) -> torch.Tensor:
        clock = StageClock(self._pipeline.vae.device)
        clips = self._pipeline.run(self._inputs, self._params, on_progress=clock.on_progress)
        frames = np.concatenate([clip.frames for clip in clips])
        clock.begin(None)
        self.stages = dict(clock.seconds)
        return torch.from_numpy(frames)


class _OfficialJob:
    """As its script for a list of videos runs it, without writing files."""

    def __init__(self, pipe: Any, inputs: FramedInputs) -> None:
        self._pipe, self._inputs = pipe, inputs
        self._clock = StageClock(torch.device("cpu"))
        self.stages: dict[str, float] = {}
        plain_fn, plain_decode = pipe.model_fn, pipe.vae.decode
        pipe.model_fn = self._in_stage("denoising", plain_fn)
        pipe.vae.decode = self._in_stage("decoding", plain_decode)

    def _in_stage(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self._clock.begin(stage)
            result = call(*arguments, **named)
            self._clock.begin("decoding" if stage == "decoding" else "encoding")
            return result

        return timed

    @torch.no_grad()
    def run(self) -> torch.Tensor:
        pipe, inputs = self._pipe, self._inputs
        self._clock = StageClock(torch.device("cpu"))
        self._clock.begin("encoding")
        speech = type(pipe.units[3]).pre_calculate_audio_pose
        made: list[Image.Image] = []
        motion: list[Image.Image] = []
        with silenced():
            embeds, _, count = speech(
                pipe=pipe,
                input_audio=inputs.audio,
                audio_sample_rate=SAMPLE_RATE,
                num_frames=CLIP_FRAMES + 1,
                height=JOB_HEIGHT,
                width=JOB_WIDTH,
                fps=FPS,
            )
            for clip in range(min(count, JOB_CLIPS)):
                frames = pipe(
                    prompt=PROMPTS[min(clip, len(PROMPTS) - 1)],
                    person_image=Image.fromarray(inputs.person),
                    product_image=None if inputs.product is None else Image.fromarray(inputs.product),
                    negative_prompt=NEGATIVE_PROMPT,
                    seed=clip,
                    num_frames=CLIP_FRAMES + 1,
                    height=JOB_HEIGHT,
                    width=JOB_WIDTH,
                    audio_embeds=embeds[clip],
                    motion_video=motion,
                    num_inference_steps=JOB_STEPS,
                    sigma_shift=7.0,
                    cfg_scale=7.0,
                )[-CLIP_FRAMES:]
                motion = frames[-MOTION_FRAMES:]
                made.extend(frames)
        self._clock.begin(None)
        self.stages = dict(self._clock.seconds)
        return torch.from_numpy(np.stack([np.asarray(frame) for frame in made]))
