"""Training data in the official CSV format.

A row is a clip: prompt, input_video (81 frames at 25 fps), motion_video (the 73 frames before it), audio,
person_image, product_image, hoi_video, pose_video, face and hand_object (boxes as JSON), height and width (of
the videos as stored), scale. Paths are relative to the CSV's folder. Only prompt, input_video, audio and
person_image are required.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from contract.video import CLIP_FRAMES, CLIP_LATENT_FRAMES, FPS, MOTION_FRAMES, SAMPLE_RATE
from model.checkpoints.writer import sha256_of
from model.media.audio import load_audio
from model.media.images import fit_person, load_image, place_product

from .boxes import parse_face, parse_hands
from .clips import TrainingClip
from .footage import Footage, read_footage
from .routing_labels import object_tokens, routing_labels
from .synthetic import SyntheticVideo
from .table import REQUIRED, Row, read_table

FILE_COLUMNS = (
    "input_video", "motion_video", "audio", "person_image", "product_image", "hoi_video", "depth_video",
    "pose_video",
)  # fmt: skip
OTHER_COLUMNS = ("prompt", "face", "hand_object", "height", "width", "scale")
SILENCE = 1e-4
"""Speech whose loudest sample is below this is none."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Needs:
    """What a recipe's losses are made of. Rows without it would train another loss in silence."""

    hoi: bool = False
    boxes: bool = False


class RowError(ValueError):
    """A row that cannot be trained on, with all that is wrong with it."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))

    def __reduce__(self) -> tuple[type[RowError], tuple[Sequence[str]]]:  # it may come from another process
        return RowError, (self.faults,)


class CsvDataset:
    """Rows of an official CSV as clips at one size. A row that cannot be used is an error, with reasons."""

    def __init__(self, metadata: str | Path, width: int, height: int, needs: Needs | None = None) -> None:
        """Read the table; files are opened in `__getitem__`. Raises ValueError as `read_table` does."""
        self._folder = Path(metadata).parent
        self._width, self._height = width, height
        self._needs = needs or Needs()
        self.rows = read_table(Path(metadata))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingClip:
        """Raises RowError."""
        row, faults = self.rows[index], list(self.rows[index].faults)
        clip = None if faults else self._clip(row, faults)
        if clip is None:
            where = f"row {row.number} ({row['input_video'] or 'no video'})"
            raise RowError([f"{where}: {fault}" for fault in faults])
        return clip

    def faults(self, index: int) -> tuple[str, ...]:
        """All that is wrong with a row; reads its files."""
        try:
            self[index]
        except RowError as error:
            return error.faults
        return ()

    def unlike(self) -> list[str]:
        """Why the rows cannot share batches of several clips, which need the same conditions."""
        found = []
        for column in ("product_image", "pose_video"):
            without = [row.number for row in self.rows if not row[column]]
            if 0 < len(without) < len(self.rows):
                found.append(f"only some rows have a {column}, row {without[0]} has none")
        scales = set()
        for row in self.rows:
            with suppress(ValueError):  # the row's own fault
                scales.add(_scale(row["scale"]))
        if len(scales) > 1:
            found.append(f"rows have scales from {min(scales):g} to {max(scales):g}")
        return found

    def digest(self, index: int) -> str:
        """A hash of everything that a row's clip is made from: its cells, its files' contents, the size.

        Raises FileNotFoundError.
        """
        row = self.rows[index]
        files = {
            column: sha256_of(path)
            for column in FILE_COLUMNS
            if (path := self._path(row, column)) is not None
        }
        cells = {column: row[column] for column in OTHER_COLUMNS}
        made_from = [files, cells, self._width, self._height]
        return sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def _clip(self, row: Row, faults: list[str]) -> TrainingClip | None:
        """The clip; None, and what is wrong in `faults`, if there is none."""

        def read(column: str, reader: Callable[[Path], Read]) -> Read | None:
            path = self._path(row, column)
            if path is None:
                if column in REQUIRED:
                    faults.append(f"{column}: the cell is empty")
                return None
            return noted(column, lambda: reader(path))

        def noted(column: str, reader: Callable[[], Read]) -> Read | None:
            try:
                return reader()
            except FileNotFoundError:
                faults.append(f"{column}: there is no file {row[column]}")
            except (OSError, ValueError) as error:
                faults.append(f"{column}: {error}")
            return None

        if not row["prompt"]:
            faults.append("prompt: the cell is empty")
        hoi_column = "hoi_video" if row["hoi_video"] else "depth_video"
        if self._needs.hoi and not row[hoi_column]:
            faults.append(
                "hoi_video: the cell is empty, but the HOI stream is trained; give one, or set hoi_weight "
                "and first_stage to 0"
            )
        video = read("input_video", lambda path: self._video(path, CLIP_FRAMES))
        motion = read("motion_video", lambda path: self._video(path, MOTION_FRAMES, exactly=True))
        hoi = read(hoi_column, lambda path: self._video(path, CLIP_FRAMES))
        pose = read("pose_video", lambda path: self._video(path, CLIP_FRAMES))
        audio = read("audio", load_clip_audio)
        person = read("person_image", lambda path: fit_person(load_image(path), self._width, self._height))
        product = read(
            "product_image", lambda path: place_product(load_image(path), self._width, self._height)
        )
        scale = noted("scale", lambda: _scale(row["scale"]))
        labelled = noted("boxes", lambda: self._labels(row, video))
        if video is None or audio is None or person is None or scale is None or faults:
            return None
        return TrainingClip(
            prompt=row["prompt"],
            frames=video.frames,
            person=np.asarray(person),
            audio=audio,
            motion=None if motion is None else motion.frames,
            product=None if product is None else np.asarray(product),
            hoi=None if hoi is None else hoi.frames,
            pose=None if pose is None else pose.frames,
            labels=None if labelled is None else labelled[0],
            objects=None if labelled is None else labelled[1],
            product_scale=scale,
        )

    def _labels(self, row: Row, video: Footage | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Experts and object per token; None if the row has neither of the cells.

        Raises:
            ValueError: the cells are not boxes in this video, or are needed and not there.
        """
        if not row["face"] and not row["hand_object"]:
            if self._needs.boxes:
                raise ValueError(
                    "face and hand_object are empty, but the experts' router is trained; give boxes ({} if "
                    "there is neither), or set experts = false"
                )
            return None
        stored = _stored_size(row)
        if video is not None and stored != video.stored:
            shown = f"{video.stored[1]}×{video.stored[0]}" + (" once turned upright" if video.turned else "")
            raise ValueError(
                f"width and height say {stored[1]}×{stored[0]}, but input_video is {shown}; boxes are in its "
                "pixels"
            )
        face = _named("face", lambda: parse_face(row["face"], stored, CLIP_LATENT_FRAMES))
        hands = _named("hand_object", lambda: parse_hands(row["hand_object"], stored, CLIP_LATENT_FRAMES))
        target = (self._height, self._width)
        return routing_labels(face, hands, stored, target), object_tokens(hands, stored, target)

    def _path(self, row: Row, column: str) -> Path | None:
        return self._folder / row[column] if row[column] else None

    def _video(self, path: Path, count: int, *, exactly: bool = False) -> Footage:
        return read_footage(path, (self._width, self._height), count, exactly=exactly)


def load_clip_audio(path: Path) -> np.ndarray:
    """A clip's speech, (N,) float32, mono, 16 kHz.

    Raises:
        ValueError: it is silent, or ends before the clip does.
    """
    audio = load_audio(path)
    seconds, needed = len(audio) / SAMPLE_RATE, CLIP_FRAMES / FPS
    if seconds < needed - 0.5 / FPS:
        raise ValueError(f"the speech lasts {seconds:.2f} s, and the clip {needed:.2f} s")
    if float(np.abs(audio).max()) < SILENCE:
        raise ValueError("the recording is silent")
    return audio


def _named(column: str, parse: Callable[[], Read]) -> Read:
    """What `parse` returns; its ValueError with the column's name."""
    try:
        return parse()
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error


def _scale(cell: str) -> float:
    scale = float(cell or 1)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{cell} is no size; it must be above 0")
    return scale


def _stored_size(row: Row) -> tuple[int, int]:
    """(height, width) from the cells. Raises ValueError."""
    if not row["height"] or not row["width"]:
        raise ValueError("boxes need the columns height and width of the video as stored")
    try:
        return int(float(row["height"])), int(float(row["width"]))
    except ValueError:
        raise ValueError(f"height and width are {row['height']} and {row['width']}, not numbers") from None


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
