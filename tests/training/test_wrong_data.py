"""Data that are wrong are refused, with the row, the column and the reason; nothing trains in silence."""

import csv
import json
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from contract.video import CLIP_FRAMES, MOTION_FRAMES, SAMPLE_RATE
from model.media.pose import load_pose
from tests.training.spoiled import at_rate, lay_on_its_side, write_video
from training.dataset import CsvDataset, Needs, RowError
from training.example import write_dataset
from training.footage import read_footage
from training.prefetch import prefetched
from training.synthetic import SyntheticVideo, make_video
from training.table import COLUMNS, read_table

WIDTH, HEIGHT = 64, 96
FACE = {"frame_2": [10, 10, 30, 30]}


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return make_video(4, WIDTH, HEIGHT, actions=["hold", "hold"], synthesiser="formant")


@pytest.fixture(scope="module")
def folder(video: SyntheticVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one good row, and the files that spoil it."""
    folder = write_dataset(tmp_path_factory.mktemp("data"), [video]).parent
    frames = video.frames[:81]
    write_video(folder / "ten.mp4", frames[:10], at_rate(10, 25))
    write_video(folder / "thirty.mp4", frames, at_rate(81, 30))
    uneven = [Fraction(number + 2 * (number > 20), 25) for number in range(81)]
    write_video(folder / "uneven.mp4", frames, uneven)
    write_video(folder / "upright.mp4", frames, at_rate(81, 25))
    lay_on_its_side(folder / "upright.mp4", folder / "turned.mp4")
    soundfile.write(folder / "short.wav", video.audio[: 2 * SAMPLE_RATE], SAMPLE_RATE)
    soundfile.write(folder / "silent.wav", np.zeros(4 * SAMPLE_RATE), SAMPLE_RATE)
    (folder / "text.png").write_text("no picture")
    return folder


def row_of(folder: Path) -> dict[str, str]:
    with (folder / "data.csv").open(newline="") as file:
        return next(csv.DictReader(file))


def table_of(folder: Path, *rows: dict[str, str], name: str = "spoiled.csv") -> Path:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


SPOILED = {
    "ten frames": ({"input_video": "ten.mp4"}, "input_video: the video holds 10 frames"),
    "30 fps": ({"input_video": "thirty.mp4"}, "input_video: the video runs at 30 frames per second"),
    "variable rate": ({"input_video": "uneven.mp4"}, "input_video: the frames come at a variable rate"),
    "HOI at 30 fps": ({"hoi_video": "thirty.mp4"}, "hoi_video: the video runs at 30"),
    "motion of 81 frames": ({"motion_video": "upright.mp4"}, "motion_video: the video holds more than 73"),
    "short speech": ({"audio": "short.wav"}, "audio: the speech lasts 2.00 s, and the clip 3.20 s"),
    "silence": ({"audio": "silent.wav"}, "audio: the recording is silent"),
    "no speech": ({"audio": ""}, "audio: the cell is empty"),
    "no prompt": ({"prompt": " "}, "prompt: the cell is empty"),
    "no such file": ({"hoi_video": "none.mp4"}, "hoi_video: there is no file none.mp4"),
    "no picture": ({"person_image": "text.png"}, "person_image: not a readable"),
    "three numbers": ({"face": '{"frame_2": [1, 2, 3]}'}, "face: frame_2: a box is four numbers"),
    "words": ({"face": '{"frame_2": [1, 2, 3, "4"]}'}, "face: frame_2: a box is four numbers"),
    "another key": ({"face": '{"2": [1, 2, 3, 4]}'}, "face: unknown key 2: keys are frame_2"),
    "beyond the clip": ({"face": '{"frame_900": [1, 2, 3, 4]}'}, "face: no key lies in the clip"),
    "another part": ({"hand_object": '{"frame_2": {"left": [1, 2, 3, 4]}}'}, "hand_object: frame_2 has an"),
    "hands as a list": ({"hand_object": '{"frame_2": [1, 2, 3, 4]}'}, "hand_object: frame_2 holds [1, 2"),
    "a list": ({"hand_object": "[1]"}, "hand_object: boxes are a JSON object"),
    "not JSON": ({"hand_object": '{"frame_2": '}, "hand_object: {\"frame_2\": is not JSON"),
    "reversed": ({"face": '{"frame_2": [30, 1, 3, 4]}'}, "face: frame_2: [30, 1, 3, 4] ends before"),
    "outside": ({"face": '{"frame_2": [90, 1, 93, 4]}'}, "lies outside the video of 64×96 pixels"),
    "shares": ({"face": '{"frame_2": [0.1, 0.2, 0.3, 0.4]}'}, "boxes are in pixels"),
    "no size": ({"height": ""}, "boxes need the columns height and width"),
    "size in words": ({"height": "tall"}, "height and width are tall and 64"),
    "another size": ({"height": "64", "width": "96"}, "say 96×64, but input_video is 64×96"),
    "scale": ({"scale": "-1"}, "scale: -1 is no size"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_wrong_row_is_refused_with_its_reason(folder: Path, case: str) -> None:
    changes, reason = SPOILED[case]
    good = row_of(folder)
    clips = CsvDataset(table_of(folder, good, {**good, **changes}), WIDTH, HEIGHT)
    assert clips.faults(0) == ()
    (fault,) = clips.faults(1)
    assert fault.startswith(f"row 2 ({changes.get('input_video', good['input_video'])}): ")
    assert reason in fault
    with pytest.raises(RowError) as raised:
        clips[1]
    assert raised.value.faults == (fault,)


def test_all_that_is_wrong_with_a_row_is_told_at_once(folder: Path) -> None:
    wrong = {**row_of(folder), "prompt": "", "audio": "short.wav", "face": "{", "input_video": "ten.mp4"}
    faults = CsvDataset(table_of(folder, wrong), WIDTH, HEIGHT).faults(0)
    assert [fault.split(": ")[1] for fault in faults] == ["prompt", "input_video", "audio", "boxes"]


def test_losses_without_their_data_are_refused(folder: Path) -> None:
    bare = {**row_of(folder), "hoi_video": "", "face": "", "hand_object": ""}
    table = table_of(folder, bare)
    assert CsvDataset(table, WIDTH, HEIGHT).faults(0) == ()
    faults = CsvDataset(table, WIDTH, HEIGHT, Needs(hoi=True, boxes=True)).faults(0)
    assert ["or set hoi_weight" in faults[0], "experts = false" in faults[1]] == [True, True]
    none = table_of(folder, {**row_of(folder), "face": "{}", "hand_object": ""})
    labels = CsvDataset(none, WIDTH, HEIGHT, Needs(boxes=True))[0].labels
    assert labels is not None
    assert not labels.any(), "{} says that there is neither face nor hand"


def test_null_boxes_are_those_of_parts_out_of_sight(folder: Path) -> None:
    cells = {
        "face": '{"frame_2": null, "frame_6": [1, 2, 30, 40]}',
        "hand_object": '{"frame_2": {"l_h": null}}',
    }
    labels = CsvDataset(table_of(folder, {**row_of(folder), **cells}), WIDTH, HEIGHT)[0].labels
    assert labels is not None
    assert [bool(frame.any()) for frame in labels[:3]] == [False, True, False]


def test_a_video_that_lies_on_its_side_is_turned_upright(folder: Path) -> None:
    plain = read_footage(folder / "upright.mp4", (WIDTH, HEIGHT), CLIP_FRAMES)
    turned = read_footage(folder / "turned.mp4", (HEIGHT, WIDTH), CLIP_FRAMES)
    assert (plain.stored, plain.turned, turned.stored, turned.turned) == (
        (HEIGHT, WIDTH), False, (WIDTH, HEIGHT), True
    )  # fmt: skip
    clockwise = np.rot90(plain.frames, -1, axes=(1, 2))  # as players show this matrix
    assert np.abs(turned.frames.astype(int) - clockwise).mean() < 1
    for resample in (True, False):
        pose = load_pose(folder / "turned.mp4", resample=resample)
        assert np.abs(pose.astype(int)[:CLIP_FRAMES] - clockwise).mean() < 1
    boxes = {"face": json.dumps(FACE), "hand_object": "", "input_video": "turned.mp4", "hoi_video": ""}
    wrong = CsvDataset(table_of(folder, {**row_of(folder), **boxes}), WIDTH, HEIGHT).faults(0)
    assert "is 96×64 once turned upright" in wrong[0]


@pytest.mark.parametrize("form", ["plain", "BOM", "semicolons", "tabs", "UTF-16"])
def test_tables_are_read_as_spreadsheets_write_them(folder: Path, form: str) -> None:
    row = {**row_of(folder), "prompt": "Grüße, 蜂蜜; und\nmehr\u2028"}
    separator = {"semicolons": ";", "tabs": "\t"}.get(form, ",")
    encoding = {"BOM": "utf-8-sig", "UTF-16": "utf-16"}.get(form, "utf-8")
    path = folder / f"{form}.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(row), delimiter=separator)
        writer.writeheader()
        writer.writerows([row, dict.fromkeys(row, "")])
    (read,) = read_table(path)
    assert read.cells == {**row, "prompt": row["prompt"].strip()}
    assert CsvDataset(path, WIDTH, HEIGHT).faults(0) == ()


def test_commas_outside_quotes_are_explained(folder: Path) -> None:
    path = folder / "unquoted.csv"
    path.write_text("prompt,input_video,audio,person_image,face\nhello,a.mp4,a.wav,p.png,{'a': [1, 2, 3]}\n")
    (fault,) = CsvDataset(path, WIDTH, HEIGHT).faults(0)
    assert "7 cells and the header 5" in fault


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("prompt,input_video,audio,person_img", "lacks the columns person_image; did you mean person_img?"),
        ("prompt,input_video,audio,person_image,hoi_vidoe", "unknown column hoi_vidoe; did you mean hoi_vid"),
        ("prompt,input_video,audio,person_image,audio", "has the column audio twice"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_columns_that_are_spelt_wrong_are_named(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(f"{header}\n{'x,' * 3}x\n" if header else "")
    with pytest.raises(ValueError, match=r"data\.csv") as raised:
        read_table(tmp_path / "data.csv")
    assert message in str(raised.value)


def test_columns_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,prompt,input_video,audio,person_image,licence\n1,a,b,c,d,e\n")
    assert read_table(tmp_path / "data.csv")[0]["prompt"] == "a"
    (tmp_path / "data.csv").write_bytes(
        "prompt,input_video,audio,person_image\nGr\xfc\xdfe,b,c,d\n".encode("latin-1")
    )
    with pytest.raises(ValueError, match="save it as CSV UTF-8"):
        read_table(tmp_path / "data.csv")


def test_rows_that_cannot_share_a_batch_are_named(folder: Path) -> None:
    good = row_of(folder)
    assert CsvDataset(table_of(folder, good, good), WIDTH, HEIGHT).unlike() == []
    other = {**good, "product_image": "", "scale": "0.5"}
    assert CsvDataset(table_of(folder, good, other), WIDTH, HEIGHT).unlike() == [
        "only some rows have a product_image, row 2 has none",
        "rows have scales from 0.5 to 1",
    ]


def test_what_is_wrong_is_told_by_other_processes_too(folder: Path) -> None:
    clips = CsvDataset(table_of(folder, {**row_of(folder), "prompt": ""}), WIDTH, HEIGHT)
    with pytest.raises(RowError, match="prompt: the cell is empty"):
        next(prefetched(clips.__getitem__, [0], 1))
    error = pickle.loads(pickle.dumps(RowError(["one", "two"])))
    assert error.faults == ("one", "two")


def test_a_digest_changes_with_everything_a_clip_is_made_from(folder: Path, video: SyntheticVideo) -> None:
    good = row_of(folder)
    table = table_of(folder, good, {**good, "prompt": "Another."}, {**good, "audio": "short.wav"}, good)
    clips = CsvDataset(table, WIDTH, HEIGHT)
    first, prompt, audio, again = (clips.digest(index) for index in range(4))
    assert first == again
    assert len({first, prompt, audio, CsvDataset(table, HEIGHT, WIDTH).digest(0)}) == 4
    copied = folder / "copy.wav"
    copied.write_bytes((folder / good["audio"]).read_bytes())
    same = {**good, "audio": "copy.wav"}
    assert CsvDataset(table_of(folder, same), WIDTH, HEIGHT).digest(0) == first, "names of files do not count"
    soundfile.write(copied, video.audio[: 4 * SAMPLE_RATE] * 0.5, SAMPLE_RATE)
    assert CsvDataset(table_of(folder, same), WIDTH, HEIGHT).digest(0) != first


def test_every_column_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        assert column in page or column == "depth_video"


def test_motion_is_the_frames_before(folder: Path) -> None:
    clip = CsvDataset(folder / "data.csv", WIDTH, HEIGHT)[0]
    assert clip.motion is not None
    assert len(clip.motion) == MOTION_FRAMES
