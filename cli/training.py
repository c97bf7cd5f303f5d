"""`cointeract train`: runs a recipe to its end and shows its progress."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.stack import StackError
from model.checkpoints.errors import CheckpointError
from training.loop import Step, TrainingDiverged, train
from training.recipe import TrainRecipe


def run_training(config: Path, resume: bool, console: Console) -> None:
    """Train as `config` says, and print where the checkpoint is.

    Raises:
        StackError: the recipe, the base checkpoint or the data cannot be used. The message says why.
    """
    columns = (TextColumn("Step {task.fields[step]}"), BarColumn(), TextColumn("{task.fields[losses]}"))
    try:
        recipe = TrainRecipe.read(config)
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("training", total=1.0, step=0, losses="encoding clips")

            def show(step: Step) -> None:
                hoi = "" if step.hoi is None else f", HOI {step.hoi:.3f}"
                router = "" if step.routing_accuracy is None else f", router {step.routing_accuracy:.0%}"
                progress.update(
                    task, completed=step.share, step=step.step, losses=f"RGB {step.rgb:.3f}{hoi}{router}"
                )

            folder = train(recipe, resume=resume, on_step=show)
    except ValidationError:  # the command line lists each wrong setting
        raise
    except (OSError, ValueError, CheckpointError, TrainingDiverged) as error:
        raise StackError(f"Training cannot run: {error}") from error
    console.print(f"Checkpoint: {folder}", highlight=False)
