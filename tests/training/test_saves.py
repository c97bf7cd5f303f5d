"""Saves of a training: whole or not there whenever the process is killed; the last two are kept."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.checkpoints.tiny import CARD
from tests.training.test_loop import base, clips, fresh_accelerator_state, recipe
from training.export import trained_card
from training.loop import Step, TrainingDiverged, train
from training.saves import begin, forget_old, point, publish, saved_steps, step_folder

__all__ = ["base", "clips", "fresh_accelerator_state"]

pytestmark = pytest.mark.slow

KILLED_WHILE_SAVING = """
import os, pathlib, signal, sys, torch
from training.loop import train
from training.recipe import TrainRecipe

recipe, fatal = TrainRecipe.model_validate_json(sys.argv[1]), sys.argv[2:]
seen = []

def dying(name, function):
    def call(*given, **options):
        if recipe.output.joinpath("state/step-00000002").exists():
            seen.append(name)
            if seen[-len(fatal):] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **options)
    return call

torch.save = dying("write", torch.save)
os.fsync = dying("fsync", os.fsync)
pathlib.Path.rename = dying("rename", pathlib.Path.rename)
pathlib.Path.replace = dying("link", pathlib.Path.replace)
train(recipe)
"""
# What happens while step 3 is saved, up to and with the call that the kill comes before.
MOMENTS = {
    "while the state is written": ["write", "write"],
    "before the state is in its place": ["fsync", "rename"],
    "while the checkpoint is brought to the disk": ["rename", "fsync", "fsync", "fsync"],
    "before the link leads to the new checkpoint": ["fsync", "link"],
}


@pytest.fixture(scope="module")
def unbroken(base: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """Steps and losses of a run that nobody killed."""
    steps: list[Step] = []
    train(recipe(base, clips, tmp_path_factory.mktemp("whole"), steps=4, window=1), on_step=steps.append)
    AcceleratorState._reset_state(reset_partial_state=True)
    return [(step.step, step.loss) for step in steps]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_saving_goes_on_from_the_save_before(
    base: Path, clips: Path, unbroken: list[tuple[int, float]], tmp_path: Path, moment: str
) -> None:
    settings = recipe(base, clips, tmp_path / "run", steps=4, window=1, save_minutes=0)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, settings.model_dump_json(), *MOMENTS[moment]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=280,
    )
    assert killed.returncode == -signal.SIGKILL
    saved = [int(folder.name.removeprefix("step-")) for folder in saved_steps(tmp_path / "run/state")]
    assert saved in ([1, 2], [2, 3])
    load_pipeline(tmp_path / "run/checkpoint")
    steps: list[Step] = []
    train(settings, resume=True, on_step=steps.append)
    assert [(step.step, step.loss) for step in steps] == unbroken[saved[-1] :]
    assert not list((tmp_path / "run").rglob(".*"))


def test_the_last_two_saves_are_kept(base: Path, clips: Path, tmp_path: Path) -> None:
    train(recipe(base, clips, tmp_path / "run", steps=4, window=1, save_minutes=0))
    for kind in ("state", "checkpoints"):
        assert [folder.name for folder in saved_steps(tmp_path / "run" / kind)] == [
            "step-00000003",
            "step-00000004",
        ]
    assert (tmp_path / "run/checkpoint").resolve().name == "step-00000004"


def test_a_run_is_never_overwritten(base: Path, clips: Path, tmp_path: Path) -> None:
    settings = recipe(base, clips, tmp_path / "run", steps=1, window=1)
    train(settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(FileExistsError, match="--resume"):
        train(settings)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(FileNotFoundError, match="no state"):
        train(recipe(base, clips, tmp_path / "other"), resume=True)


def test_a_run_that_saved_nothing_may_begin_again(base: Path, clips: Path, tmp_path: Path) -> None:
    settings = recipe(base, clips, tmp_path / "run", steps=1, window=1)

    def stop(step: Step) -> None:
        raise TrainingDiverged

    with pytest.raises(TrainingDiverged):
        train(settings, on_step=stop)
    train(settings)
    assert len((tmp_path / "run/curve.jsonl").read_text().splitlines()) == 1


def test_the_card_tells_of_the_run_and_not_of_its_base(base: Path, clips: Path, tmp_path: Path) -> None:
    given = CARD.model_copy(
        update={"note": "A toy.", "license": "CC-BY-4.0", "sources": {"data": "drawings"}}
    )
    settings = recipe(base, clips, tmp_path / "run", steps=1, window=1, note="Of our shop.")
    card = trained_card(given, settings, steps=7, clips=3)
    assert (card.name, card.trained, card.note, card.license) == ("run", True, "Of our shop.", "CC-BY-4.0")
    assert (card.sizes, card.min_side, card.max_pixels) == (("64x64",), 64, CARD.max_pixels)
    assert card.sources == {"base": "tiny-random", "data": "3 encoded clips", "training": "7 steps, seed 0"}
    large = settings.model_copy(update={"width": 480, "height": 720})
    assert trained_card(given, large, steps=7, clips=3).max_pixels == 480 * 720
    assert read_card(train(settings)).sources["training"] == "1 steps, seed 0"


def test_a_card_names_the_table_it_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("prompt\n")
    settings = recipe(tmp_path, tmp_path, tmp_path / "run").model_copy(
        update={"data": tmp_path / "clips.csv"}
    )
    assert (
        trained_card(CARD, settings, steps=1, clips=500)
        .sources["data"]
        .startswith("clips.csv: 500 clips, sha256 ")
    )


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = step_folder(tmp_path, 5)
    for text in ("old", "new"):
        partial = begin(folder)
        assert not list(partial.iterdir())
        (partial / "file").write_text(text)
        if text == "new":
            assert (folder / "file").read_text() == "old"
        publish(partial, folder)
        assert (folder / "file").read_text() == text
    point(tmp_path / "link", folder)
    assert str((tmp_path / "link").readlink()) == folder.name
    begin(step_folder(tmp_path, 6))
    forget_old(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "step-00000005"]


def test_only_old_saves_are_forgotten(tmp_path: Path) -> None:
    for step in (1, 2, 30, 200):
        step_folder(tmp_path, step).mkdir()
    (tmp_path / "notes").mkdir()
    forget_old(tmp_path, also_kept=[step_folder(tmp_path, 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes",
        "step-00000001",
        "step-00000030",
        "step-00000200",
    ]
