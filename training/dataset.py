"""Training data in the official CSV format.

A row is a clip: prompt, input_video (81 frames at 25 fps), motion_video (the 73 frames before it), audio,
person_image, product_image, hoi_video, pose_video, face and hand_object (boxes as JSON), height and width (of
the videos as stored), scale. Paths are relative to the CSV's folder. Only prompt, input_video, audio and
person_image are required.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.video import CLIP_FRAMES, MOTION_FRAMES
from model.media.audio import load_audio
from model.media.images import fit_person, load_image, place_product
from model.media.pose import load_pose

from .clips import TrainingClip
from .routing_labels import object_tokens, routing_labels
from .synthetic import SyntheticVideo

REQUIRED = ("prompt", "input_video", "audio", "person_image")


class CsvDataset:
    """Rows of an official CSV as clips at one size. A row that cannot be read is an error that names it."""

    def __init__(self, metadata: str | Path, width: int, height: int) -> None:
        """Read the table; files are opened in `__getitem__`.

        Raises:
            ValueError: a required column is missing, or the table is empty.
        """
        self._folder = Path(metadata).parent
        self._width, self._height = width, height
        with Path(metadata).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{metadata} lacks the columns {', '.join(missing)}")
            self._rows = list(reader)
        if not self._rows:
            raise ValueError(f"{metadata} has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TrainingClip:
        row = self._rows[index]
        try:
            return self._clip(row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"row {index + 1} ({row.get('input_video')}): {error}") from error

    def _clip(self, row: Mapping[str, str]) -> TrainingClip:
        product = self._path(row, "product_image")
        # Early official tables call the column depth_video.
        hoi = self._path(row, "hoi_video") or self._path(row, "depth_video")
        motion, pose = self._path(row, "motion_video"), self._path(row, "pose_video")
        labels = objects = None
        face, hands = parse_boxes(row.get("face")), parse_boxes(row.get("hand_object"))
        if face or hands:
            if not row.get("height") or not row.get("width"):
                raise ValueError("boxes need the columns height and width of the video as stored")
            stored = (int(float(row["height"])), int(float(row["width"])))
            labels = routing_labels(face, hands, stored, (self._height, self._width))
            objects = object_tokens(hands, stored, (self._height, self._width))
        return TrainingClip(
            prompt=row["prompt"],
            frames=self._video(self._folder / row["input_video"], CLIP_FRAMES),
            person=np.asarray(
                fit_person(load_image(self._folder / row["person_image"]), self._width, self._height)
            ),
            audio=load_audio(self._folder / row["audio"]),
            motion=None if motion is None else self._video(motion, MOTION_FRAMES),
            product=None
            if product is None
            else np.asarray(place_product(load_image(product), self._width, self._height)),
            hoi=None if hoi is None else self._video(hoi, CLIP_FRAMES),
            pose=None if pose is None else self._video(pose, CLIP_FRAMES),
            labels=labels,
            objects=objects,
            product_scale=float(row.get("scale") or 1.0),
        )

    def _path(self, row: Mapping[str, str], column: str) -> Path | None:
        cell = row.get(column)
        return self._folder / cell if cell and cell != "nan" else None

    def _video(self, path: Path, count: int) -> np.ndarray:
        """Exactly `count` frames whatever the file's rate. The last frame of a short video is repeated."""
        size = (self._width, self._height)
        frames = load_pose(path, size=size, max_frames=count, resample=False)
        missing = count - len(frames)
        return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames


def parse_boxes(cell: str | None) -> Mapping[str, Any]:
    """The JSON object of a `face` or `hand_object` cell; an empty cell holds no boxes.

    Raises:
        ValueError: the cell holds something else.
    """
    if not cell or cell == "nan":
        return {}
    value = json.loads(cell)
    if not isinstance(value, dict):
        raise ValueError(f"boxes must be a JSON object, not {cell[:60]}")
    return value


def synthetic_clip(video: SyntheticVideo, clip: int) -> TrainingClip:
    """Clip `clip` of a synthetic video, without files in between. Clip 0 has no motion frames."""
    start = clip * CLIP_FRAMES
    height, width = video.frames.shape[1:3]
    face, hands = clip_boxes(video, clip)
    return TrainingClip(
        prompt=video.prompts[clip],
        frames=video.frames[start : start + CLIP_FRAMES],
        person=np.asarray(video.person_image),
        audio=video.audio,
        audio_clip=clip,
        motion=video.frames[start - MOTION_FRAMES : start] if clip else None,
        product=np.asarray(place_product(video.product_image, width, height)),
        hoi=video.structure[start : start + CLIP_FRAMES] if len(video.structure) else None,
        labels=routing_labels(face, hands, (height, width), (height, width)),
        objects=object_tokens(hands, (height, width), (height, width)),
    )


def clip_boxes(
    video: SyntheticVideo, clip: int
) -> tuple[dict[str, list[int]], dict[str, dict[str, list[int]]]]:
    """A clip's official `face` and `hand_object` objects, with boxes of each latent frame's third frame."""
    face, hands = {}, {}
    for k in range(2, CLIP_FRAMES, 4):
        boxes = video.boxes[clip * CLIP_FRAMES + k]
        face[f"frame_{k}"] = list(boxes.face)
        hands[f"frame_{k}"] = {"l_h": list(boxes.left_hand), "r_h": list(boxes.right_hand)}
        if boxes.product is not None:
            hands[f"frame_{k}"]["obj"] = list(boxes.product)
    return face, hands
