"""`cointeract train --check`: all that would stop a run, found before it, and what the run will take."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoints.card_file import read_card
from model.checkpoints.load import DTYPES

from .dataset import CsvDataset, Needs
from .loop import TrainingRun, holds_run
from .prefetch import prefetched
from .preparation import needs_of
from .recipe import TrainRecipe
from .saves import KEPT_SAVES

FP32_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """What a run takes on this machine. Times are those of one clip and one step; sizes are counted."""

    clips: int
    encoding_seconds: float
    step_seconds: float
    training_seconds: float
    cache_bytes: int
    saved_bytes: int
    free_bytes: int
    """Where the output will be."""


@dataclass(frozen=True)
class CheckReport:
    rows: int
    faults: tuple[str, ...]
    estimate: Estimate | None = None
    """None if there are faults."""


def check_recipe(
    recipe: TrainRecipe, resume: bool = False, on_row: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Read the base's card, every row of the tables and all their files; then try one clip and one step.

    Raises:
        FileNotFoundError: the base or a table is not there.
        ValueError: a table cannot be read.
        TrainingDiverged: the tried step has no finite gradients.
    """
    read_card(recipe.base)
    faults: list[str] = []
    if holds_run(recipe.output) and not resume:
        faults.append(f"{recipe.output} holds a run already: add --resume, or name another output")
    tables = [(recipe.data, needs_of(recipe)), (recipe.held_out, Needs())]
    datasets = [
        (path, CsvDataset(path, recipe.width, recipe.height, needs))
        for path, needs in tables
        if path is not None
    ]
    rows, read = sum(len(clips) for _, clips in datasets), 0
    for path, clips in datasets:
        if recipe.batch > 1 and path == recipe.data:
            faults += [f"{path.name}: {why}; set batch = 1 and accumulate" for why in clips.unlike()]
        for found in prefetched(clips.faults, range(len(clips)), recipe.workers):
            faults += [f"{path.name}, {fault}" for fault in found]
            read += 1
            if on_row is not None:
                on_row(read, rows)
    if faults:
        return CheckReport(rows, tuple(faults))
    return CheckReport(rows, (), estimate(recipe, rows))


def estimate(recipe: TrainRecipe, rows: int) -> Estimate:
    """Encode one clip and take the steps of both stages, in a folder that is deleted afterwards."""
    began: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        tried = recipe.model_copy(
            update={"output": Path(scratch) / "run", "held_out": None, "samples": 0}
            | ({} if recipe.data is None else {"cache": Path(scratch) / "cache"})
        )
        run = TrainingRun(tried, lambda done, total: began.append(time.monotonic()), most_clips=1)
        run.step(0.0)  # warms up
        shares = (0.0, 0.999)
        seconds = [run.step(share).seconds for share in shares]
        step = seconds[0] * recipe.first_stage + seconds[1] * (1 - recipe.first_stage)
        cache = sum(path.stat().st_size for path in tried.cache.iterdir()) if recipe.data is not None else 0
        saved = _saved_bytes(run)
        run.accelerator.end_training()
    training = step * recipe.steps
    if recipe.minutes is not None:
        training = min(training, 60 * recipe.minutes)
    return Estimate(
        clips=rows or run.cache.num_clips,
        encoding_seconds=(began[-1] - began[0]) * rows if began else 0.0,
        step_seconds=step,
        training_seconds=training,
        cache_bytes=cache * rows,
        saved_bytes=saved,
        free_bytes=shutil.disk_usage(_existing(recipe.output)).free,
    )


def _saved_bytes(run: TrainingRun) -> int:
    """The states and checkpoints that stay: weights, optimiser, moving average; the served networks."""
    stored = int(DTYPES[run.recipe.stored_weights].itemsize)
    trained = sum(weight.numel() for weight in run.trained)
    whole = sum(weight.numel() * weight.element_size() for weight in run.transformer.parameters())
    moments = 2 if run.recipe.optimizer == "adamw" else 1
    state = whole + trained * FP32_BYTES * (moments + 1)
    parts = [part for part in run.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    checkpoint = stored * sum(weight.numel() for part in parts for weight in part.parameters())
    best = 1 if run.recipe.held_out is not None else 0
    total: int = KEPT_SAVES * state + (KEPT_SAVES + best) * checkpoint
    return total


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
