"""The other networks, and a whole short job."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from contract.card import CheckpointDefaults
from contract.choices import Preset
from contract.job import Stage
from contract.params import GenerationParams
from contract.video import (
    CLIP_FRAMES,
    CLIP_LATENT_FRAMES,
    FPS,
    MOTION_FRAMES,
    MOTION_LATENT_FRAMES,
    SAMPLE_RATE,
)
from model.bench.clip import ClipShape
from model.bench.timing import Spent, peak_memory, spend
from model.inputs import VideoInputs
from model.media import encode_clip
from model.pipeline import CoInteractPipeline
from model.speech_features import encode_audio
from model.text_encoder import encode_prompts
from model.vae import decode_latents, encode_pixels

PROMPT = (
    "A person holds up a product with one hand, turns it to the camera and describes what it is for. " * 4
)


@dataclass(frozen=True)
class PartFigures:
    """Something that a clip needs beside the transformer."""

    name: str
    spent: Spent
    peak_bytes: int | None


@dataclass(frozen=True)
class JobFigures:
    """A short job, from decoded inputs to encoded clips."""

    size: str
    clips: int
    steps: int
    guided: bool
    seconds: float
    cpu_seconds: float
    stages: dict[str, float]
    """Seconds of each stage: on a GPU on the wall, on a CPU the process's own."""
    peak_bytes: int | None


@torch.no_grad()
def measure_parts(pipeline: CoInteractPipeline, shape: ClipShape, rounds: int) -> Iterator[PartFigures]:
    """VAE, text encoder and speech encoder, each on what one later clip asks of it."""
    device, vae = pipeline.vae.device, pipeline.vae
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, MOTION_FRAMES, shape.height, shape.width, generator=generator) * 2 - 1
    latents = torch.randn(shape.latents(MOTION_LATENT_FRAMES + CLIP_LATENT_FRAMES), generator=generator)
    pixels, latents = pixels.to(device, vae.dtype), latents.to(device)
    samples = int(CLIP_FRAMES / FPS * SAMPLE_RATE)
    audio = (0.1 * torch.randn(samples, generator=generator)).numpy()
    runs = {
        f"VAE: {MOTION_FRAMES} frames encoded": partial(encode_pixels, vae, pixels),
        f"VAE: {CLIP_FRAMES} frames decoded behind {MOTION_FRAMES}": partial(
            decode_latents, vae, latents, keep_from=MOTION_LATENT_FRAMES
        ),
        "text encoder: one prompt": partial(
            encode_prompts, pipeline.text_encoder, pipeline.tokenizer, [PROMPT], device
        ),
        f"speech encoder: {CLIP_FRAMES / FPS:g} s": partial(
            encode_audio, pipeline.audio_encoder, pipeline.feature_extractor, audio, device
        ),
    }
    for name, run in runs.items():
        with peak_memory(device) as peak:
            spent = spend(run, device, rounds)
        pipeline.streams.park()
        yield PartFigures(name, spent, peak.bytes)


class StageClock:
    """Adds up the seconds between reports of progress, by the stage that the earlier one named."""

    def __init__(self, device: torch.device) -> None:
        self._now = time.perf_counter if device.type == "cuda" else time.process_time
        self._since: tuple[str, float] | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def on_progress(self, stage: Stage, clip: int, step: int) -> None:
        """See `contract.job.OnProgress`."""
        self.begin(stage.value)

    def begin(self, stage: str | None) -> None:
        """A stage that nobody reports begins; None: the end."""
        now = self._now()
        if self._since is not None:
            self.seconds[self._since[0]] += now - self._since[1]
        self._since = None if stage is None else (stage, now)


def measure_job(pipeline: CoInteractPipeline, shape: ClipShape, params: GenerationParams) -> JobFigures:
    """Render the clips of `params` from made-up inputs and encode them as a worker does."""
    device, inputs = pipeline.vae.device, job_inputs(shape, params)
    clock = StageClock(device)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, peak_memory(device) as peak:
        for clip in pipeline.generate_clips(inputs, params, on_progress=clock.on_progress):
            clock.begin("encoding clips")
            encode_clip(clip.frames, Path(folder) / f"{clip.index}.mp4")
        clock.begin(None)
    return JobFigures(
        size=shape.size,
        clips=params.num_clips,
        steps=params.num_inference_steps,
        guided=params.guided,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        stages=dict(clock.seconds),
        peak_bytes=peak.bytes,
    )


def job_params(shape: ClipShape, clips: int, steps: int, defaults: CheckpointDefaults) -> GenerationParams:
    """A job of so many whole clips, with the checkpoint's settings but for the number of steps."""
    return GenerationParams(
        prompts=(PROMPT,),
        negative_prompt=defaults.negative_prompt,
        width=shape.width,
        height=shape.height,
        num_inference_steps=steps,
        guidance_scale=defaults.guidance_scale,
        flow_shift=defaults.flow_shift,
        product_scale=1.0,
        seed=0,
        num_clips=clips,
        num_frames=clips * CLIP_FRAMES,
        preset=Preset.EXACT,
    )


def job_inputs(shape: ClipShape, params: GenerationParams) -> VideoInputs:
    """Made-up photos, and noise as long as the clips for speech."""
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (shape.height, shape.width, 3), np.uint8))
    audio = 0.1 * random.standard_normal(params.num_frames * SAMPLE_RATE // FPS)
    return VideoInputs(photo, audio.astype(np.float32), photo)
