"""`cointeract generate` without a server: the same engine that a worker runs, in this process."""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from cli.generate import GenerateOptions, GenerationFailed, Made, ProgressDisplay, caveat
from contract.card import CheckpointCard
from contract.job import Stage
from contract.params import Fit, GenerationParams
from contract.video import CLIP_FRAMES, SAMPLE_RATE, clips_of_frames, frames_of_speech
from contract.worker import LiveProgress
from deploy.up import BUNDLED_CHECKPOINT, read_card
from model.media.audio import load_audio
from workers.engines.engine import DeviceFailed, OutOfMemory, RenderRequest
from workers.engines.pipeline import PipelineEngine

Value = TypeVar("Value")


def generate_here(
    options: GenerateOptions,
    output: Path,
    checkpoint: Path | None,
    device: str,
    console: Console,
) -> Made:
    """Render and save `output`. Raises GenerationFailed, StackError (bad checkpoint)."""
    folder = checkpoint or BUNDLED_CHECKPOINT
    card = read_card(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with console.status(f"Loading {folder} on {device} …"):
        engine = PipelineEngine(folder, device)
    try:
        request = RenderRequest(
            params=_resolve(options, card),
            person_image=options.person,
            audio=options.audio,
            product_image=options.product,
            pose_video=options.pose,
        )
        _render(engine, request, output, console)
    except (ValueError, OutOfMemory, DeviceFailed) as error:
        raise GenerationFailed(str(error)) from error
    return Made(request.params.seed, caveat(card.trained, card.note))


def _resolve(options: GenerateOptions, card: CheckpointCard) -> GenerationParams:
    """What the command line leaves open comes from the checkpoint's card, as in the service."""
    width, height = parse_size(options.size or card.sizes[0])
    num_frames = frames_of_speech(len(load_audio(options.audio)), SAMPLE_RATE)
    if options.clips is not None:
        num_frames = min(num_frames, options.clips * CLIP_FRAMES)
    defaults = card.defaults
    return GenerationParams(
        prompts=options.prompts,
        negative_prompt=_first(options.negative_prompt, defaults.negative_prompt),
        width=width,
        height=height,
        num_inference_steps=_first(options.steps, defaults.num_inference_steps),
        guidance_scale=_first(options.guidance, defaults.guidance_scale),
        flow_shift=_first(options.flow_shift, defaults.flow_shift),
        product_scale=options.product_scale,
        seed=_first(options.seed, secrets.randbelow(2**31)),
        num_clips=clips_of_frames(num_frames),
        num_frames=num_frames,
        fit=Fit(options.fit),
        audio_face_mask=options.audio_face_mask,
        preset=options.preset,
    )


def _first(given: Value | None, default: Value) -> Value:
    return default if given is None else given


def parse_size(size: str) -> tuple[int, int]:
    """ "720x1280" → (720, 1280). Raises GenerationFailed."""
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()) or int(width) % 16 or int(height) % 16:
        raise GenerationFailed(f"--size {size}: give WIDTHxHEIGHT, both multiples of 16, such as 720x1280.")
    return int(width), int(height)


def _render(engine: PipelineEngine, request: RenderRequest, output: Path, console: Console) -> None:
    params = request.params
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cointeract-") as scratch,
        ProgressDisplay(console).shown() as display,
    ):

        def on_progress(stage: Stage, index: int, step: int) -> None:
            progress = LiveProgress(
                attempt=1,
                stage=stage,
                clip=index,
                num_clips=params.num_clips,
                step=step,
                num_steps=params.num_inference_steps,
            )
            percent = progress.percent()
            left = (time.monotonic() - began) * (100 - percent) / percent if percent >= 5 else None
            detail = f"clip {index + 1}/{params.num_clips} · step {step}/{params.num_inference_steps}"
            display.show(percent, stage, detail, left)

        videos: list[Path] = []
        for rendered in engine.render(request, on_progress):
            videos.append(Path(scratch) / f"{rendered.index}.mp4")
            rendered.save(videos[-1], Path(scratch) / "motion")
        display.show(99.0, Stage.MUXING)
        # Joined beside its place, so that the last step is a rename on one file system.
        partial = output.with_name(output.name + ".part")
        engine.finish(request, videos, partial, Path(scratch) / "poster.jpg")
        partial.replace(output)
        display.show(100.0, Stage.DONE)
