"""Synthetic videos as a table in the official CSV format, to be read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from contract.video import CLIP_FRAMES, FPS, MOTION_FRAMES, SAMPLE_RATE
from model.media.video import ClipWriter
from training.dataset import clip_boxes
from training.synthetic import SyntheticVideo

COLUMNS = (
    "prompt", "input_video", "motion_video", "audio", "person_image", "product_image", "hoi_video",
    "pose_video", "face", "hand_object", "height", "width", "scale",
)  # fmt: skip


def write_dataset(folder: Path, videos: Sequence[SyntheticVideo]) -> Path:
    """Write videos of at least two clips as rows of an official table, one per clip behind the first;
    returns the CSV.

    Videos are encoded with loss (H.264), as real data are.
    """
    rows = []
    for number, video in enumerate(videos):
        height, width = video.frames.shape[1:3]
        for clip in range(1, len(video.actions)):
            start = clip * CLIP_FRAMES
            name = f"{number:05d}-{clip}"
            files = {
                "input_video": f"input_video/{name}.mp4",
                "motion_video": f"motion_video/{name}.mp4",
                "hoi_video": f"hoi_video/{name}.mp4",
                "audio": f"audio/{name}.wav",
                "person_image": f"person_image/{name}.png",
                "product_image": f"product_image/{name}.png",
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
    table = folder / "data.csv"
    with table.open("w", newline="", encoding="utf-8") as written:
        writer = csv.DictWriter(written, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


def _write_video(path: Path, frames: np.ndarray) -> None:
    with ClipWriter(path, frames.shape[2], frames.shape[1]) as writer:
        writer.write(frames)
