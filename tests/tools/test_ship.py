"""What ships as files is made by commands; here they run on the smallest networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.samples import BUNDLED
from model.checkpoints.card_file import read_card, write_card
from model.checkpoints.tiny import CARD, write_tiny_checkpoint
from model.checkpoints.writer import verify_manifest
from model.media.video import encode_clip
from tools.ship import NOTE, install_checkpoint, main
from tools.showcase import PAGE, SHOWN_PHOTO_SIZE, VIDEO, save_showcase

pytestmark = pytest.mark.slow

RECIPE = 'name = "little"\nwidth = 64\nheight = 64\nseed = 7\n[vae]\nmeasured_videos = 1\n'


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """What a training leaves behind."""
    (tmp_path / "little.toml").write_text(RECIPE)
    folder = tmp_path / "training"
    write_tiny_checkpoint(folder / "little" / "checkpoint")
    config = folder / "little/checkpoint/vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(tmp_path)}))
    write_card(CARD.model_copy(update={"name": "little", "trained": True}), folder / "little" / "checkpoint")
    steps = [
        {"step": i, "rgb": 1.0, "hoi": None if i % 2 else 0.25, "routing_accuracy": 0.5} for i in range(9)
    ]
    for name, entries in (
        ("little/curve.jsonl", steps),
        ("vae-log.jsonl", [{"step": 0, "l1": 0.125}]),
        ("audio-log.jsonl", [{"step": 0, "explained": 0.875}]),
    ):
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def test_installing_a_checkpoint_records_how_it_came_about(training: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    (target / "old").mkdir(parents=True)
    install_checkpoint(training, tmp_path / "little.toml", target)
    assert not (target / "old").exists()
    assert verify_manifest(target) == []
    listed = {line.split("  ")[1] for line in (target / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}
    card = read_card(target)
    assert (card.name, card.trained, card.note) == ("little", True, NOTE)
    assert str(tmp_path) not in (target / "vae/config.json").read_text()
    report = (target / "TRAINING.md").read_text()
    assert RECIPE.strip() in report
    assert "seed 7" in report
    for line in ("| VAE, weighted L1 | 0.125 |", "| DiT, video | 1.000 |", "| DiT, steps | 9 |"):
        assert line in report
    assert (target / "curve.jsonl").read_text() == (training / "little/curve.jsonl").read_text()


def test_an_untrained_checkpoint_is_not_installed(training: Path, tmp_path: Path) -> None:
    write_card(CARD, training / "little" / "checkpoint")
    with pytest.raises(ValueError, match="untrained"):
        install_checkpoint(training, tmp_path / "little.toml", tmp_path / "installed")
    assert not (tmp_path / "installed").exists()


def test_actions_that_do_not_exist_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inputs", "--actions", "hold,dance", "--to", str(tmp_path)])
    assert "no such actions: dance" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_animation_shows_inputs_and_video_and_lights_up_what_is_on(tmp_path: Path) -> None:
    frames = np.empty((100, 128, 80, 3), np.uint8)
    frames[:] = (40 + np.arange(100))[:, None, None, None]
    encode_clip(frames, tmp_path / "video.mp4")
    save_showcase(BUNDLED, tmp_path / "video.mp4", tmp_path / "demo.webp")
    with Image.open(tmp_path / "demo.webp") as animation:
        assert animation.size == PAGE
        first = np.asarray(animation.convert("RGB"), int)
        animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
        last = np.asarray(animation.convert("RGB"), int)
    video = slice(20, VIDEO[1]), slice(PAGE[0] - VIDEO[0], PAGE[0] - 30)
    assert np.abs(first[video] - 40).max() < 12
    assert np.abs(last[video] - 138).max() < 12
    photos = slice(0, SHOWN_PHOTO_SIZE[1]), slice(0, SHOWN_PHOTO_SIZE[0])
    assert np.abs(first[photos] - last[photos]).mean() < 2
    prompts = slice(0, SHOWN_PHOTO_SIZE[1]), slice(2 * SHOWN_PHOTO_SIZE[0] + 48, PAGE[0] - VIDEO[0] - 16)
    assert np.abs(first[prompts] - last[prompts]).max() > 40
