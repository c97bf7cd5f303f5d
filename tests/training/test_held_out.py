"""Held-out clips: their loss and samples come with every save, and the best checkpoint stays."""

import csv
import json
from pathlib import Path

import av
import pytest

from model.checkpoints.load import load_pipeline
from tests.training.test_cache import folder
from tests.training.test_loop import fresh_accelerator_state, recipe
from training.held_out import Measured
from training.loop import Step, train
from training.saves import saved_steps

__all__ = ["folder", "fresh_accelerator_state"]

pytestmark = pytest.mark.slow


def test_held_out_clips_are_measured_and_rendered_and_the_best_checkpoint_stays(
    folder: Path, tmp_path: Path
) -> None:
    told: list[Measured] = []
    steps: list[Step] = []
    settings = recipe(
        folder / "base", folder / "cache", tmp_path / "run", data=folder / "data.csv",
        held_out=folder / "data.csv", samples=1, steps=4, save_minutes=0, window=1, learning_rate=0.3,
        ema=0.0,
    )  # fmt: skip
    train(settings, on_held_out=told.append, on_step=steps.append)
    lines = [json.loads(line) for line in (tmp_path / "run/held-out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert [line["loss"] for line in lines] == [measured.loss for measured in told]
    assert lines[-1]["loss"] == lines[-2]["loss"], "the same weights, clips, levels and noise"
    assert len({line["loss"] for line in lines}) == 4
    best = min(lines, key=lambda line: line["loss"])["step"]
    assert (tmp_path / "run/best").resolve().name == f"step-{best:08d}"
    load_pipeline(tmp_path / "run/best")
    kept = {3, 4, best}
    assert {int(path.name[5:]) for path in saved_steps(tmp_path / "run/checkpoints")} == kept
    assert best == 1, "at this rate the first step is the best, so it is not one of the last two"
    with av.open(str(tmp_path / "run" / lines[0]["samples"][0])) as sample:
        assert len(list(sample.decode(video=0))) == 80
        assert sample.streams.audio

    again: list[Measured] = []
    train(settings.model_copy(update={"steps": 5}), resume=True, on_held_out=again.append)
    lines = [json.loads(line) for line in (tmp_path / "run/held-out.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 5
    assert (tmp_path / "run/best").resolve().name == f"step-{best:08d}", "a resumed run remembers it"


def test_the_service_is_measured_and_not_the_dropouts(folder: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((folder / "data.csv").open(newline="")))
    assert len(rows) == 2
    told: list[Measured] = []
    for run in ("one", "two"):
        settings = recipe(
            folder / "base", folder / "cache", tmp_path / run, data=folder / "data.csv", steps=1, window=1,
            held_out=folder / "data.csv", learning_rate=1e-12, seed=len(told),
        )  # fmt: skip
        train(settings, on_held_out=told.append)
    assert told[0].loss == told[1].loss, "another seed draws other dropouts"
