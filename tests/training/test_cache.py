"""Encoded clips are found again by what they were made of: changed data are never trained on by mistake."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from model.checkpoints.tiny import write_tiny_checkpoint
from tests.training.test_loop import fresh_accelerator_state, recipe
from tests.training.test_wrong_data import row_of, table_of
from training.cache import EMPTY_PROMPT, ClipCache
from training.example import write_dataset
from training.fingerprint import encoders_digest
from training.loop import TrainingRun
from training.preparation import needs_of
from training.recipe import RecipeError, TrainRecipe
from training.synthetic import make_video

__all__ = ["fresh_accelerator_state"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base checkpoint and a table of two rows, the second without motion."""
    folder = tmp_path_factory.mktemp("own")
    write_tiny_checkpoint(folder / "base")
    video = make_video(1, 64, 64, actions=2, synthesiser="formant")
    row = row_of(write_dataset(folder, [video]).parent)
    table_of(folder, row, {**row, "motion_video": "", "prompt": "Another."}, name="data.csv")
    return folder


def drawn(folder: Path, table: Path, **changes: object) -> set[str]:
    """The names of the clips that a run draws from; `told` must count them all."""
    told: list[tuple[int, int]] = []
    settings = recipe(folder / "base", folder / "cache", folder / "run", data=table, lora_rank=2, **changes)
    cache = TrainingRun(settings, lambda done, total: told.append((done, total))).cache
    assert told[-1] == (cache.num_clips, cache.num_clips)
    return {path.name for path in (*cache.first, *cache.after_motion)}


def test_changed_rows_sizes_and_bases_are_encoded_anew_and_the_rest_is_found_again(folder: Path) -> None:
    one, two = rows = list(csv.DictReader((folder / "data.csv").open(newline="")))
    first = drawn(folder, folder / "data.csv")
    assert len(first) == 3, "the clip with motion is encoded both ways"
    written = {path: path.stat().st_mtime_ns for path in (folder / "cache").iterdir() if path.name in first}

    turned = drawn(folder, table_of(folder, two, one, name="turned.csv"))
    assert turned == first
    assert {path: path.stat().st_mtime_ns for path in written} == written

    changed = drawn(folder, table_of(folder, {**one, "prompt": "Something else."}, two, name="changed.csv"))
    assert len(changed - first) == 2
    assert len(changed & first) == 1
    fewer = drawn(folder, table_of(folder, two, name="fewer.csv"))
    assert len(fewer) == 1
    assert fewer < first

    assert not drawn(folder, folder / "data.csv", width=80) & first
    write_tiny_checkpoint(folder / "other", seed=1)
    (folder / "base").rename(folder / "before")
    (folder / "other").rename(folder / "base")
    assert not drawn(folder, folder / "data.csv") & first
    (folder / "base").rename(folder / "other")
    (folder / "before").rename(folder / "base")

    photo = folder / rows[1]["person_image"]
    Image.new("RGB", (64, 64), "red").save(photo)
    assert not drawn(folder, folder / "data.csv") & first, "the file has the same name and another content"


def test_two_bases_share_a_cache_and_not_their_empty_prompts(folder: Path) -> None:
    drawn(folder, folder / "data.csv")
    assert list((folder / "cache").glob(f"{encoders_digest(folder / 'base')[:32]}-{EMPTY_PROMPT}"))
    assert not (folder / "cache" / EMPTY_PROMPT).exists()
    with pytest.raises(FileNotFoundError, match="no encoded clips"):
        ClipCache(folder / "cache", ["none"])
    with pytest.raises(FileNotFoundError, match="has no vae"):
        encoders_digest(folder / "cache")


def test_rows_that_need_batches_of_their_own_are_refused_before_anything_is_encoded(folder: Path) -> None:
    one, two = csv.DictReader((folder / "data.csv").open(newline=""))
    mixed = table_of(folder, one, {**two, "product_image": ""}, name="mixed.csv")
    with pytest.raises(ValueError, match="row 2 has none: such clips cannot share a batch"):
        drawn(folder, mixed)


def test_a_recipe_needs_the_data_of_its_losses(tmp_path: Path) -> None:
    settings = recipe(tmp_path, tmp_path, tmp_path)
    assert (needs_of(settings).hoi, needs_of(settings).boxes) == (True, True)
    plain = settings.model_copy(update={"hoi_weight": 0, "experts": False})
    assert (needs_of(plain).hoi, needs_of(plain).boxes) == (False, False)
    assert needs_of(plain.model_copy(update={"detail_weight": 4.0})).boxes


PATHS = 'base = "a"\ncache = "b"\noutput = "c"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PATHS + "learing_rate = 1", "learing_rate: there is no such field; did you mean learning_rate"),
        (PATHS + "[dropouts]\nmotoin = 0.5", "dropouts.motoin: there is no such field; did you mean motion?"),
        (PATHS + "steps = ", "recipe.toml is not TOML"),
        (PATHS + "width = 50", "width: Input should be a multiple of 16"),
        (PATHS + "batch = 0", "batch: Input should be greater than or equal to 1"),
        (PATHS + 'lora_rank = "some"', "lora_rank: Input should be"),
        (PATHS + 'frozen_weights = "bf16"', 'frozen_weights = "bf16" needs mixed_precision = "bf16"'),
        (PATHS + "samples = 2", "name a CSV of them in held_out"),
        ('base = "a"\ncache = "b"', "output: Field required"),
        ('base = 1\ncache = "b"\noutput = "c"', "base: "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_told_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.toml") as raised:
        TrainRecipe.read(file)
    assert message in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_full_fine_tuning_can_be_written_down(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(PATHS + 'lora_rank = "full"\n', encoding="utf-8-sig")
    assert TrainRecipe.read(file).lora_rank == "full"
    file.write_text(PATHS + "lora_rank = 16")
    assert TrainRecipe.read(file).lora_rank == 16
