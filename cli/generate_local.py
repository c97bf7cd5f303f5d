"""`cointeract generate` without a server: the same engine that a worker runs, in this process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console

from cli.generate import GenerateOptions, GenerationFailed, Made, ProgressDisplay, caveat
from contract.card import CheckpointCard
from contract.job import Stage
from contract.resolve import check_files, resolve
from contract.settings import Settings
from contract.warnings import JobWarning, warnings_about_frames, warnings_about_prompts
from contract.worker import LiveProgress
from deploy.samples import BUNDLED_CHECKPOINT
from deploy.up import checkpoint_card
from server.decoding.decoded import DecodedFile
from server.decoding.formats import KIND_OF_FIELD
from server.decoding.sandbox import DecodeTask, Sandbox
from server.errors import ApiError
from workers.engines.engine import ClipFiles, DeviceFailed, OutOfMemory, RenderRequest
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
    card = checkpoint_card(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="cointeract-") as inputs:
        try:
            request, warnings = local_request(options, card, Path(inputs))
            for warning in warnings:
                console.print(f"[yellow]Warning:[/] {warning.message}", highlight=False)
            with console.status(f"Loading {folder} on {device} …"):
                engine = PipelineEngine(folder, device)
            _render(engine, request, output, console)
        except (ValueError, OutOfMemory, DeviceFailed) as error:
            raise GenerationFailed(str(error)) from error
    return Made(request.params.seed, caveat(card.trained, card.note))


async def _decoded(
    files: Mapping[str, Path], folder: Path, settings: Settings
) -> tuple[dict[str, Path], list[DecodedFile]]:
    """Decode the files into `folder`, as a server does. Returns what is known about each, in the same order.

    The server's own sandbox decodes them. Pixels and samples are therefore the same, and a file that crashes
    a codec does no harm.

    Raises GenerationFailed.
    """
    paths = {field: folder / field for field in files}
    sandbox = Sandbox(settings)
    with ExitStack() as sources:
        tasks = [
            DecodeTask(field, KIND_OF_FIELD[field], sources.enter_context(path.open("rb")), paths[field])
            for field, path in files.items()
        ]
        try:
            return paths, await sandbox.decode(tasks, "local")
        except ApiError as error:
            limit = "" if error.limit is None else f" Limit: {error.limit}."
            source = files.get(error.field or "")
            raise GenerationFailed(f"{source or 'Input'}: {error.detail}{limit}") from error
        finally:
            await sandbox.stop()


def local_request(
    options: GenerateOptions, card: CheckpointCard, folder: Path
) -> tuple[RenderRequest, list[JobWarning]]:
    """The engine's request, with decoded files in `folder`, and the warnings about it.

    Raises FieldError, GenerationFailed.
    """
    check_files(options.files, card)
    settings = Settings()
    files, decoded = asyncio.run(_decoded(options.files, folder, settings))
    found = dict(zip(files, decoded, strict=True))
    speech, dropped = found["audio"].speech_length, settings.max_dropped_frames
    params = resolve(options.fields, card, speech, dropped)
    request = RenderRequest(
        params=params,
        person_image=files["person_image"],
        audio=files["audio"],
        product_image=files.get("product_image"),
        pose_video=files.get("pose_video"),
    )
    about_files = [warning for file in found.values() for warning in file.warnings]
    about_all = [*warnings_about_frames(params, speech, dropped), *warnings_about_prompts(params)]
    return request, [*about_files, *about_all]


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
            others = [Path(scratch) / name for name in ("motion", "poster.jpg", "router-map.mp4")]
            rendered.save(ClipFiles(videos[-1], *others))
        display.show(99.0, Stage.MUXING)
        # The video is joined next to its target, so that the last step is a rename within one file system.
        partial = output.with_name(output.name + ".part")
        engine.finish(request, videos, partial, Path(scratch) / "poster.jpg")
        partial.replace(output)
        display.show(100.0, Stage.DONE)
