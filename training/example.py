"""An example of training data: clips of the procedural world as a table in the official CSV format.

They show what files and cells look like, and let every command be tried before clips of one's own are there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from contract.video import CLIP_FRAMES, FPS, MOTION_FRAMES, SAMPLE_RATE
from model.media.video import ClipWriter

from .dataset import clip_boxes
from .synthetic import SyntheticVideo, make_video

WRITTEN_COLUMNS = (
    "prompt", "input_video", "motion_video", "audio", "person_image", "product_image", "hoi_video",
    "pose_video", "face", "hand_object", "height", "width", "scale",
)  # fmt: skip
EXAMPLE_RECIPE = """\
# A recipe to try training with, on a CPU too. docs/training.md explains the fields.
base = "{base}"
data = "data.csv"
held_out = "held-out.csv"
samples = 1
cache = "encoded"
output = "run"
width = {width}
height = {height}
steps = 10
lora_rank = 8
learning_rate = 1e-4
warmup_steps = 2
log_every = 1
"""


def write_example(folder: Path, base: Path, width: int, height: int) -> Path:
    """Write four clips to train on, two held-out ones of other people, and a recipe; returns the recipe.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty")
    for table, seeds in (("data.csv", range(1, 5)), ("held-out.csv", range(11, 13))):
        videos = [make_video(seed, width, height, actions=2, synthesiser="formant") for seed in seeds]
        write_dataset(folder, videos, table, seeds)
    recipe = folder / "recipe.toml"
    text = EXAMPLE_RECIPE.format(base=base.resolve().as_posix(), width=width, height=height)
    recipe.write_text(text, encoding="utf-8")
    return recipe


def write_dataset(
    folder: Path,
    videos: Sequence[SyntheticVideo],
    name: str = "data.csv",
    numbers: Sequence[int] | None = None,
) -> Path:
    """Write videos of at least two clips as rows of an official table, one per clip behind the first.

    Returns the CSV. Videos are encoded with loss (H.264), as real data are. `numbers` name the files.
    """
    rows = []
    for number, video in zip(numbers or range(len(videos)), videos, strict=True):
        height, width = video.frames.shape[1:3]
        for clip in range(1, len(video.actions)):
            start = clip * CLIP_FRAMES
            stem = f"{number:05d}-{clip}"
            files = {
                "input_video": f"input_video/{stem}.mp4",
                "motion_video": f"motion_video/{stem}.mp4",
                "hoi_video": f"hoi_video/{stem}.mp4",
                "audio": f"audio/{stem}.wav",
                "person_image": f"person_image/{stem}.png",
                "product_image": f"product_image/{stem}.png",
            }
            for file in files.values():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
            stop = start + CLIP_FRAMES
            last = min(stop, len(video.frames) - 1)
            _write_video(folder / files["input_video"], video.frames[[*range(start, stop), last]])
            _write_video(folder / files["motion_video"], video.frames[start - MOTION_FRAMES : start])
            _write_video(folder / files["hoi_video"], video.structure[[*range(start, stop), last]])
            samples = SAMPLE_RATE // FPS
            soundfile.write(
                folder / files["audio"], video.audio[start * samples : (stop + 1) * samples], SAMPLE_RATE
            )
            video.person_image.save(folder / files["person_image"])
            video.product_image.save(folder / files["product_image"])
            face, hands = clip_boxes(video, clip)
            rows.append(
                {
                    **files,
                    "prompt": video.prompts[clip],
                    "pose_video": "",
                    "face": json.dumps(face),
                    "hand_object": json.dumps(hands),
                    "height": height,
                    "width": width,
                    "scale": 1.0,
                }
            )
    table = folder / name
    with table.open("w", newline="", encoding="utf-8") as written:
        writer = csv.DictWriter(written, WRITTEN_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


def _write_video(path: Path, frames: np.ndarray) -> None:
    with ClipWriter(path, frames.shape[2], frames.shape[1]) as writer:
        writer.write(frames)
