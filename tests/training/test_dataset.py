"""The official CSV format, written by us and read back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from contract.video import CLIP_FRAMES, MOTION_FRAMES
from training.dataset import CsvDataset, synthetic_clip
from training.example import write_dataset
from training.synthetic import SyntheticVideo, make_video

WIDTH, HEIGHT = 64, 96


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return make_video(4, WIDTH, HEIGHT, actions=["hold", "lift_right"], synthesiser="formant")


@pytest.fixture(scope="module")
def table(video: SyntheticVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), [video])


def test_a_row_reads_back_as_the_clip_it_was_written_from(video: SyntheticVideo, table: Path) -> None:
    wanted = synthetic_clip(video, 1)
    clips = CsvDataset(table, WIDTH, HEIGHT)
    assert len(clips) == 1
    clip = clips[0]
    assert clip.prompt == wanted.prompt
    assert clip.frames.shape == (CLIP_FRAMES, HEIGHT, WIDTH, 3)
    assert clip.motion is not None
    assert clip.motion.shape == (MOTION_FRAMES, HEIGHT, WIDTH, 3)
    assert wanted.motion is not None
    assert wanted.hoi is not None
    assert clip.hoi is not None
    for read, written in ((clip.frames, wanted.frames), (clip.motion, wanted.motion), (clip.hoi, wanted.hoi)):
        assert np.abs(read.astype(int) - written).mean() < 6  # H.264 and chroma at half resolution
    assert np.array_equal(clip.person, wanted.person)
    assert clip.product is not None
    assert np.array_equal(clip.product, wanted.product)
    assert clip.labels is not None
    assert np.array_equal(clip.labels, wanted.labels)
    assert clip.pose is None
    assert len(clip.audio) == pytest.approx(16_000 * 81 / 25, abs=800)


def test_another_size_crops_the_centre_and_moves_the_labels(video: SyntheticVideo, table: Path) -> None:
    clip = CsvDataset(table, 64, 64)[0]
    assert clip.frames.shape == (CLIP_FRAMES, 64, 64, 3)
    middle = video.frames[CLIP_FRAMES, 16:80]
    assert np.abs(clip.frames[0].astype(int) - middle).mean() < 6
    assert clip.labels is not None
    assert clip.labels.shape == (20, 4, 4)


def test_object_tokens_come_from_the_hand_object_column(video: SyntheticVideo, table: Path) -> None:
    objects = CsvDataset(table, WIDTH, HEIGHT)[0].objects
    assert objects is not None
    for k in (2, 38, 78):
        box = video.boxes[80 + k].product
        assert box is not None
        rows, columns = slice(box[1] // 16, box[3] // 16 + 1), slice(box[0] // 16, box[2] // 16 + 1)
        expected = np.zeros_like(objects[0])
        expected[rows, columns] = 1
        assert np.array_equal(objects[(k - 2) // 4], expected)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("prompt,input_video,audio\nhello,a.mp4,a.wav\n")
    with pytest.raises(ValueError, match="person_image"):
        CsvDataset(tmp_path / "data.csv", WIDTH, HEIGHT)


def test_an_unreadable_file_names_its_row(table: Path) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["hoi_video"] = "hoi_video/nothing.mp4"
    broken = table.with_name("broken.csv")
    with broken.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=r"row 1.*nothing\.mp4"):
        CsvDataset(broken, WIDTH, HEIGHT)[0]


def test_boxes_have_an_entry_per_latent_frame(table: Path) -> None:
    with table.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert list(json.loads(row["face"])) == [f"frame_{k}" for k in range(2, 80, 4)]
    assert set(json.loads(row["hand_object"])["frame_2"]) == {"l_h", "r_h", "obj"}
