"""The measurements themselves, on videos whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from contract.video import CLIP_FRAMES
from training.drawing import Painter
from training.evaluate import contact_sheet, markdown_table, measure, mouth_agreement, seen_action, seen_mouth
from training.synthetic import SyntheticVideo, make_video
from training.world import make_cast

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 80, 128


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return make_video(
        3, WIDTH, HEIGHT, actions=["lift_right", "rotate"], split="heldout", synthesiser="formant"
    )


def test_the_true_video_scores_perfectly(video: SyntheticVideo) -> None:
    scores = measure(video.frames, video, make_cast(77, "heldout"))
    assert scores.product_told_apart == 1
    assert scores.person_told_apart == 1
    assert scores.action_obeyed == 1
    assert scores.hand_obeyed == 1
    assert scores.mouth_correlation > 0.95
    assert scores.mouth_lag_frames == 0
    assert scores.contact == 1
    assert scores.penetration < 0.02
    assert scores.boundary_jump < 3
    assert scores.error == 0


def test_another_product_is_noticed(video: SyntheticVideo) -> None:
    other = make_cast(77, "heldout")
    painter = Painter(replace(video.cast, product=other.product), WIDTH, HEIGHT)
    wrong = np.stack([painter.frame(pose) for pose in video.poses])
    scores = measure(wrong, video, other)
    assert scores.product_told_apart == 0
    assert scores.person_told_apart > 0.9
    assert scores.penetration > 0.1


def test_noise_scores_badly(video: SyntheticVideo) -> None:
    noise = np.random.default_rng(0).integers(0, 256, video.frames.shape, dtype=np.uint8)
    scores = measure(noise, video, make_cast(77, "heldout"))
    assert scores.mouth_correlation < 0.5
    assert scores.error > 50


def test_a_late_mouth_is_measured_in_frames(video: SyntheticVideo) -> None:
    late = np.concatenate([np.repeat(video.mouth[:1], 3), video.mouth[:-3]])
    correlation, lag = mouth_agreement(late, video.mouth)
    assert lag == 3
    assert correlation == pytest.approx(1)


def test_the_mouth_is_read_from_the_picture(video: SyntheticVideo) -> None:
    painter = Painter(video.cast, WIDTH, HEIGHT)
    seen = seen_mouth(video.frames[:30], video, painter)
    assert np.abs(seen - video.mouth[:30]).max() < 0.15


def test_actions_are_told_apart(video: SyntheticVideo) -> None:
    painter = Painter(video.cast, WIDTH, HEIGHT)
    assert seen_action(video.frames, video, painter, 0) == "lift_right"
    swapped = np.roll(video.frames, CLIP_FRAMES, axis=0)
    assert seen_action(swapped, video, painter, 0) == "rotate"


def test_errors_are_of_the_part_that_is_wrong(video: SyntheticVideo) -> None:
    broken = video.frames.copy()
    for frame, boxes in zip(broken, video.boxes, strict=True):
        x1, y1, x2, y2 = boxes.face
        frame[y1:y2, x1:x2] = 255 - frame[y1:y2, x1:x2]
    scores = measure(broken, video, make_cast(77, "heldout"))
    assert scores.face_error > 40
    assert scores.product_error < scores.face_error / 10
    assert 0 < scores.error < scores.face_error / 4


def test_a_table_compares_with_its_first_column() -> None:
    table = markdown_table(
        {
            "full": [{"contact": 0.9, "hand_obeyed": None}, {"contact": 0.7, "hand_obeyed": 1.0}],
            "no experts": [{"contact": 0.8, "hand_obeyed": None}, {"contact": 0.4, "hand_obeyed": 0.5}],
        }
    )
    assert "| contact | 0.800 | 0.600 (-0.200 ± 0.200) |" in table
    assert "| hand obeyed | 1.000 | 0.500 |" in table


def test_contact_sheets_hold_both_videos(video: SyntheticVideo) -> None:
    assert contact_sheet(video.frames, video).size == (WIDTH * 17, HEIGHT * 2)
