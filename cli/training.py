"""`cointeract train`: runs a recipe to its end, or checks it, and shows its progress."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import diffusers.utils.logging
import transformers.utils.logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.samples import BUNDLED_CHECKPOINT
from deploy.stack import StackError
from deploy.up import checkpoint_card
from model.checkpoints.errors import CheckpointError
from training.check import CheckReport, check_recipe
from training.example import write_example
from training.held_out import Measured
from training.loop import BEST, Step, TrainingDiverged, train
from training.recipe import TrainRecipe


def run_training(config: Path, resume: bool, console: Console) -> None:
    """Train as `config` says, and print where the checkpoint is.

    Raises:
        StackError: the recipe, the base checkpoint or the data cannot be used. The message says why.
    """
    with _explained("Training cannot run"), _quiet():
        recipe = TrainRecipe.read(config)
        with _progress(console) as progress:
            encoding, training = progress.add_task("Encoding", total=None), None
            said = {"held out": ""}

            def encoded(done: int, total: int) -> None:
                progress.update(encoding, completed=done, total=total, description="Encoding clips")

            def held_out(measured: Measured) -> None:
                said["held out"] = f", held out {measured.loss:.3f}"

            def show(step: Step) -> None:
                nonlocal training
                if training is None:
                    progress.remove_task(encoding)
                    training = progress.add_task("Training", total=recipe.steps)
                total = round((step.step + 1) / max(step.share, 1e-9)) if recipe.minutes else recipe.steps
                progress.update(
                    training,
                    completed=step.step + 1,
                    total=max(total, step.step + 1),
                    description=_described(step) + said["held out"],
                )

            folder = train(recipe, resume=resume, on_step=show, on_clip=encoded, on_held_out=held_out)
    console.print(f"Checkpoint: {folder}", highlight=False)
    if recipe.held_out is not None:
        console.print(f"Least held-out loss: {recipe.output / BEST}", highlight=False)


def run_check(config: Path, resume: bool, console: Console) -> None:
    """Check a recipe and its data, and print what the run will take.

    Raises:
        StackError: something would stop the run. The message lists everything.
    """
    with _explained("Training cannot run"), _quiet():
        recipe = TrainRecipe.read(config)
        with _progress(console) as progress:
            task = progress.add_task("Reading rows", total=None)
            report = check_recipe(
                recipe, resume, lambda done, total: progress.update(task, completed=done, total=total)
            )
    if report.faults:
        raise StackError("\n".join([*report.faults, f"{len(report.faults)} faults. Nothing was trained."]))
    console.print(described(report), highlight=False, markup=False)


def run_example(folder: Path, console: Console) -> None:
    """Write example clips and a recipe for the bundled checkpoint. Raises StackError."""
    width, height = (int(side) for side in checkpoint_card(BUNDLED_CHECKPOINT).sizes[0].split("x"))
    with _explained("The example cannot be written"):
        recipe = write_example(folder, BUNDLED_CHECKPOINT, width, height)
    console.print(str(recipe), highlight=False, markup=False)


def described(report: CheckReport) -> str:
    """What a run will take, for people."""
    lines = [f"Rows: {report.rows}, all can be used."]
    if (estimate := report.estimate) is not None:
        lines += [
            f"Encoding: about {_time(estimate.encoding_seconds)}, as one clip took.",
            f"Training: about {_time(estimate.training_seconds)}, as one step took "
            f"{estimate.step_seconds:.2f} s; measuring held-out clips comes on top.",
            f"Disk: {_size(estimate.cache_bytes)} for encoded clips, {_size(estimate.saved_bytes)} for "
            f"saves; {_size(estimate.free_bytes)} are free.",
        ]
    return "\n".join(lines)


def _described(step: Step) -> str:
    hoi = "" if step.hoi is None else f", HOI {step.hoi:.3f}"
    router = "" if step.routing_accuracy is None else f", router {step.routing_accuracy:.0%}"
    return f"RGB {step.rgb:.3f}{hoi}{router}" + (", SKIPPED" if step.skipped else "")


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, CheckpointError, TrainingDiverged) as error:
        raise StackError(f"{what}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Only what this command prints: no bars and remarks of the libraries, which say nothing to act on."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
