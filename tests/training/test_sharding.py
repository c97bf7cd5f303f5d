"""Training with divided weights: the same numbers as one process, and states for any number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoints.load import load_pipeline
from tests.training.test_loop import base, clips, fresh_accelerator_state, recipe
from training.loop import Step, train
from training.saves import saved_steps

__all__ = ["base", "clips", "fresh_accelerator_state"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TWO_PROCESSES = """
import json, os, sys
from training.loop import train
from training.recipe import TrainRecipe

class Stopped(Exception):
    pass

losses = {}

def note(step):
    losses[step.step] = step.loss
    if step.step == 4:
        raise Stopped

try:
    train(TrainRecipe.model_validate_json(sys.argv[1]), resume=True, on_step=note)
except Stopped:
    if os.environ["RANK"] == "0":
        open(sys.argv[2], "w").write(json.dumps(losses))
"""


class Stopped(Exception):
    pass


def losses_of(
    settings: dict[str, object], base: Path, clips: Path, stop: int | None = None
) -> dict[int, float]:
    """The losses of a run in this process; it stops before it saves step `stop`."""
    found: dict[int, float] = {}

    def note(step: Step) -> None:
        if step.step == stop:
            raise Stopped
        found[step.step] = step.loss

    try:
        output = Path(str(settings["output"]))
        train(recipe(base, clips, **settings), resume=(output / "state").exists(), on_step=note)  # type: ignore[arg-type]
    except Stopped:
        assert stop is not None
    return found


def test_two_processes_train_as_one_does_and_go_on_where_it_stopped(
    base: Path, clips: Path, tmp_path: Path
) -> None:
    """Steps 0 and 1 in one process, 2 and 3 in two, 4 and 5 in one again, against a run without breaks."""
    common: dict[str, object] = {
        "steps": 6, "window": 2, "batch": 1, "lora_rank": 2, "shard": True, "save_minutes": 0,
        "hoi_share": 0.5, "learning_rate": 1e-2, "ema": 0.5,
    }  # fmt: skip
    alone = {**common, "gradient_accumulation": 2}
    whole = losses_of({**alone, "output": tmp_path / "whole"}, base, clips)
    assert list(whole) == [0, 1, 2, 3, 4, 5]
    first = losses_of({**alone, "output": tmp_path / "run"}, base, clips, stop=2)

    two = recipe(base, clips, tmp_path / "run", **common)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "--no-python", sys.executable, "-c", TWO_PROCESSES, two.model_dump_json(), str(tmp_path / "losses"),
    ]  # fmt: skip
    cpu = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=cpu)
    assert done.returncode == 0, done.stderr[-4000:]
    second = {int(step): loss for step, loss in json.loads((tmp_path / "losses").read_text()).items()}
    assert [path.name[-1] for path in saved_steps(tmp_path / "run/state")] == ["3", "4"]
    third = losses_of({**alone, "output": tmp_path / "run"}, base, clips)
    assert (list(first), list(second), list(third)) == ([0, 1], [2, 3, 4], [4, 5])
    for part in (first, second, third):
        assert part == pytest.approx({step: whole[step] for step in part}, abs=1e-5)

    one, other = (
        load_pipeline(tmp_path / run / "checkpoint").transformer.state_dict() for run in ("whole", "run")
    )
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-3)
