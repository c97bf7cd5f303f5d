"""`cointeract train` as a person uses it: it says what it does, what is wrong, and nothing else."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from cli.app import app
from model.checkpoints.card_file import read_card
from model.checkpoints.tiny import write_tiny_checkpoint
from training.example import write_dataset
from training.synthetic import make_video

pytestmark = pytest.mark.slow
runner = CliRunner()

RECIPE = """
base = "base"
data = "data.csv"
cache = "cache"
output = "run"
width = 64
height = 64
steps = 2
window = 1
lora_rank = 2
"""


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_checkpoint(tmp_path / "base")
    write_dataset(tmp_path, [make_video(1, 64, 64, actions=2, synthesiser="formant")])
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, ["train", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_check_reads_everything_and_leaves_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    status, said = run("--config", folder / "recipe.toml", "--check")
    assert status == 0, said
    assert "Rows: 1, all can be used." in said
    assert "Encoding: about 0:00:" in said
    assert "Training: about 0:00:" in said
    assert " are free." in said
    assert sorted(folder.rglob("*")) == before


def test_a_check_lists_every_fault_of_every_table(folder: Path) -> None:
    (row,) = csv.DictReader((folder / "data.csv").open(newline=""))
    wrong = [{**row, "prompt": "", "audio": ""}, row, {**row, "face": "[1]"}]
    for name in ("data.csv", "held.csv"):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(wrong)
    (folder / "recipe.toml").write_text(RECIPE + 'held_out = "held.csv"\n')
    status, said = run("--config", folder / "recipe.toml", "--check")
    assert status == 1
    for name in ("data.csv", "held.csv"):
        for fault in ("row 1", "row 3"):
            assert f"{name}, {fault}" in said
    assert "6 faults. Nothing was trained." in said.replace("\n", " ")
    assert not (folder / "run").exists()


def test_faults_are_sentences(folder: Path) -> None:
    for change, message in (
        ("steps = \n", "recipe.toml is not TOML"),
        ("stepz = 3\n", "did you mean steps?"),
        ('held_out = "none.csv"\n', "none.csv"),
    ):
        (folder / "recipe.toml").write_text(RECIPE + change)
        for extra in ((), ("--check",)):
            status, said = run("--config", folder / "recipe.toml", *extra)
            assert (status, message in said.replace("\n", ""), "Traceback" in said) == (1, True, False), said


def test_a_run_says_what_it_does_and_nothing_else(folder: Path) -> None:
    command = [sys.executable, "-m", "cli.app", "train", "--config", str(folder / "recipe.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "") == f"Checkpoint: {folder / 'run/checkpoint'}"
    assert read_card(folder / "run/checkpoint").sources["data"].startswith("data.csv: 1 clips")
    assert json.loads((folder / "run/curve.jsonl").read_text().splitlines()[0])["step"] == 0
    status, said = run("--config", folder / "recipe.toml")
    assert status == 1
    assert "--resume" in said
    status, said = run("--config", folder / "recipe.toml", "--check")
    assert "holds a run already" in said.replace("\n", " ")
