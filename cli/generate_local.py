"""`cointeract generate` without a server: the same engine that a worker runs, in this process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from cli.generate import GenerateOptions, GenerationFailed, Made, ProgressDisplay, caveat
from contract.card import CheckpointCard
from contract.job import Stage
from contract.resolve import check_files, resolve
from contract.worker import LiveProgress
from deploy.up import BUNDLED_CHECKPOINT, read_card
from model.media.audio import speech_length
from workers.engines.engine import DeviceFailed, OutOfMemory, RenderRequest
from workers.engines.pipeline import PipelineEngine


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
    try:
        request = _request(options, card)
        with console.status(f"Loading {folder} on {device} …"):
            engine = PipelineEngine(folder, device)
        _render(engine, request, output, console)
    except (ValueError, OutOfMemory, DeviceFailed) as error:
        raise GenerationFailed(str(error)) from error
    return Made(request.params.seed, caveat(card.trained, card.note))


def _request(options: GenerateOptions, card: CheckpointCard) -> RenderRequest:
    """What the engine is asked for. Raises FieldError, MediaError."""
    files = options.files
    check_files(files, card)
    return RenderRequest(
        params=resolve(options.fields, card, speech_length(files["audio"])),
        person_image=files["person_image"],
        audio=files["audio"],
        product_image=files.get("product_image"),
        pose_video=files.get("pose_video"),
    )


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
