"""The trained checkpoint that comes with the code."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from deploy.samples import BUNDLED_CHECKPOINT
from model.checkpoints.card_file import read_card
from model.checkpoints.load import load_pipeline
from model.checkpoints.writer import verify_manifest
from tools.ship import NOTE, RECIPE
from training.small import SmallRecipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def files() -> list[Path]:
    return [path for path in BUNDLED_CHECKPOINT.rglob("*") if path.is_file()]


def test_every_file_is_the_one_that_was_recorded() -> None:
    listed = {line.split("  ")[1] for line in (BUNDLED_CHECKPOINT / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.relative_to(BUNDLED_CHECKPOINT).as_posix() for path in files()} - {"SHA256SUMS"}
    assert verify_manifest(BUNDLED_CHECKPOINT) == []


def test_it_takes_no_more_than_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in files()) <= 25_000_000


def test_its_card_describes_the_checkpoint_of_the_recipe() -> None:
    card, recipe = read_card(BUNDLED_CHECKPOINT), SmallRecipe.read(RECIPE)
    assert card.trained
    assert (card.name, card.license, card.note) == (recipe.name, "Apache-2.0", NOTE)
    assert card.sizes == (f"{recipe.width}x{recipe.height}",)
    assert card.max_pixels == recipe.width * recipe.height
    assert read_card(BUNDLED_CHECKPOINT).note == NOTE


def test_its_report_names_recipe_and_steps() -> None:
    report = (BUNDLED_CHECKPOINT / "TRAINING.md").read_text(encoding="utf-8")
    recipe = tomllib.loads(report.partition("```toml\n")[2].partition("\n```")[0])
    assert recipe["name"] == "procedural-world"
    steps = [
        json.loads(line)["step"] for line in (BUNDLED_CHECKPOINT / "curve.jsonl").read_text().splitlines()
    ]
    assert f"| DiT, steps | {steps[-1] + 1} |" in report


def test_it_is_a_checkpoint_for_serving() -> None:
    pipeline = load_pipeline(BUNDLED_CHECKPOINT)
    assert not pipeline.transformer.config.hoi_branch
    assert pipeline.transformer.proj_out.weight.abs().max() > 0, "untrained: it would predict 0"


def test_no_file_names_a_folder_of_the_machine_that_trained_it() -> None:
    for path in BUNDLED_CHECKPOINT.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml"])
def test_containers_use_it_without_being_told(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert '["worker"]' in text
    assert "--checkpoint" not in [
        word for line in text.splitlines() if "[" in line for word in line.split('"')
    ]
