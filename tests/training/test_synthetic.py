"""The procedural world: deterministic, consistent with its boxes, its speech and its prompts."""

import numpy as np
import pytest

from contract.video import CLIP_FRAMES, SAMPLE_RATE
from model.media.images import place_product
from training.drawing import MESH_PRODUCT, Painter
from training.speech import mouth_opening, speak
from training.synthetic import make_video
from training.world import ACTIONS, make_cast, pose_at, rest_pose

pytestmark = pytest.mark.slow

SIZE = (80, 128)


def test_a_seed_always_draws_the_same_video() -> None:
    one = make_video(5, *SIZE, shown=range(10, 14), synthesiser="formant")
    two = make_video(5, *SIZE, shown=range(10, 14), synthesiser="formant")
    other = make_video(6, *SIZE, shown=range(10, 14), synthesiser="formant")
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.structure, two.structure)
    assert np.array_equal(one.audio, two.audio)
    assert one.prompts == two.prompts
    assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_starts_and_ends_in_the_ready_pose(action: str) -> None:
    product = make_cast(0).product
    ready = pose_at("hold", 0, 0.0, product)
    for frame in (0, CLIP_FRAMES - 1):
        pose = pose_at(action, frame, 0.0, product)  # type: ignore[arg-type]
        for hand, wanted in ((pose.right, ready.right), (pose.left, ready.left)):
            assert hand.grips
            assert abs(hand.x - wanted.x) < 0.02
            assert abs(hand.y - wanted.y) < 0.02


def test_lifting_hand_is_the_one_that_is_asked_for() -> None:
    product = make_cast(0).product
    right = pose_at("lift_right", 40, 0.0, product)
    left = pose_at("lift_left", 40, 0.0, product)
    assert right.right.grips
    assert not right.left.grips
    assert right.held is not None
    assert right.held.x < 0.4  # the presenter's right is the picture's left
    assert left.left.grips
    assert not left.right.grips


def test_boxes_hold_what_the_structure_video_shows() -> None:
    cast = make_cast(3)
    painter = Painter(cast, 160, 256)
    pose = pose_at("lift_left", 40, 0.5, cast.product)
    box = painter.boxes(pose).product
    assert box is not None
    orange = np.abs(painter.structure(pose).astype(int) - np.array(MESH_PRODUCT)).sum(axis=2) < 30
    rows, columns = np.nonzero(orange)
    assert len(rows) > 100
    assert box[0] - 2 <= columns.min()
    assert columns.max() <= box[2] + 2
    assert box[1] - 2 <= rows.min()
    assert rows.max() <= box[3] + 2


def test_fingers_are_before_the_product_and_palms_behind() -> None:
    cast = make_cast(3)
    painter = Painter(cast, 160, 256)
    held = painter.structure(pose_at("hold", 40, 0.0, cast.product))
    box = painter.boxes(pose_at("hold", 40, 0.0, cast.product)).right_hand
    colors = {
        tuple(c // 24 for c in color) for color in held[box[1] : box[3], box[0] : box[2]].reshape(-1, 3)
    }
    assert len(colors) > 3  # fingers, product and torso all show inside the hand's box


def test_mouth_is_open_when_the_voice_is_loud_and_closed_in_silence() -> None:
    audio = speak(80, 1, "formant")
    assert audio.shape == (80 * SAMPLE_RATE // 25,)
    mouth = mouth_opening(audio, 80)
    loudness = np.sqrt((audio.reshape(80, -1) ** 2).mean(axis=1))
    assert np.corrcoef(mouth, loudness)[0, 1] > 0.8
    assert mouth.min() < 0.1
    assert mouth.max() > 0.9
    assert not mouth_opening(np.zeros_like(audio), 80).any()


def test_heldout_people_and_products_never_occur_in_training() -> None:
    def looks(split: str) -> tuple[set[object], set[object]]:
        casts = [make_cast(seed, split) for seed in range(300)]  # type: ignore[arg-type]
        people = {(c.person.hair_style, c.person.hair_name, c.person.shirt_name) for c in casts}
        return people, {(c.product.shape, c.product.pattern, c.product.color_name) for c in casts}

    _, train_products = looks("train")
    _, heldout_products = looks("heldout")
    assert train_products.isdisjoint(heldout_products)


def test_prompts_name_the_product_and_the_hand() -> None:
    video = make_video(
        2, *SIZE, actions=["lift_left"], shown=range(1), with_structure=False, synthesiser="formant"
    )
    product = video.cast.product
    assert f"{product.color_name} {product.shape}" in video.prompts[0]
    assert "left hand" in video.prompts[0]


def test_the_person_photo_holds_nothing() -> None:
    assert rest_pose().held is None


def test_the_product_photo_shows_it_where_and_as_large_as_it_is_held() -> None:
    for seed in range(4):
        video = make_video(seed, 80, 128, actions=["hold"], shown=range(1))
        placed = np.asarray(place_product(video.product_image, 80, 128)).astype(int)
        columns = np.flatnonzero((placed.sum(axis=2) > 60).any(axis=0))
        assert columns[-1] - columns[0] + 1 == pytest.approx(video.cast.product.width * 80, abs=2.5)
        rows = np.flatnonzero((placed.sum(axis=2) > 60).any(axis=1))
        box = video.boxes[0].product
        assert box is not None
        assert (rows[0] + rows[-1]) / 2 == pytest.approx((box[1] + box[3]) / 2, abs=6)  # the camera differs
