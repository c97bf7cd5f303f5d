"""Boxes to experts, as the official data format has it."""

import numpy as np
import pytest

from model.kernels.router import BASE, FACE, HAND
from training.routing_labels import box_tokens, latent_frame, object_tokens, routing_labels

pytestmark = pytest.mark.slow

SIZE = (64, 48)  # 4 rows, 3 columns of tokens


def test_frame_k_belongs_to_latent_frame_k_minus_two_by_four() -> None:
    assert [latent_frame(f"frame_{k}") for k in (2, 5, 6, 78)] == [0, 0, 1, 19]
    assert latent_frame("frame_1") is None
    assert latent_frame("other_6") is None


def test_a_box_marks_every_token_it_touches_and_its_frame_only() -> None:
    labels = routing_labels({"frame_6": [0, 0, 15, 31.9]}, {}, SIZE, SIZE)
    assert labels.shape == (20, 4, 3)
    assert np.argwhere(labels == FACE).tolist() == [[1, 0, 0], [1, 1, 0]]


def test_hands_win_over_the_face_and_the_object_is_no_hand() -> None:
    hands = {"frame_2": {"l_h": [0, 0, 10, 10], "r_h": None, "obj": [0, 0, 47, 63]}}
    labels = routing_labels({"frame_2": [0, 0, 30, 10]}, hands, SIZE, SIZE)
    assert labels[0, 0].tolist() == [HAND, FACE, BASE]
    assert (labels[0, 1:] == BASE).all()


def test_object_tokens_are_those_the_objects_box_touches_whoever_holds_it() -> None:
    hands = {"frame_2": {"l_h": [0, 0, 10, 10], "r_h": None, "obj": [0, 0, 20, 10]}, "frame_6": {"obj": None}}
    touched = object_tokens(hands, SIZE, SIZE)
    assert np.argwhere(touched).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_boxes_follow_the_frames_through_cover_and_centre_crop() -> None:
    # 200×100 (height × width) onto 64×48: scaled by 0.48 to 96×48, 16 rows cut above and below.
    assert box_tokens([0, 34, 99, 66], (200, 100), SIZE) == (slice(0, 1), slice(0, 3))
    assert box_tokens([0, 0, 99, 30], (200, 100), SIZE) is None  # wholly cut off
    rows, _ = box_tokens([0, 100, 99, 199], (200, 100), SIZE) or (None, None)
    assert rows == slice(2, 4)


def test_frames_beyond_the_clip_are_ignored() -> None:
    assert (routing_labels({"frame_82": [0, 0, 40, 40]}, {}, SIZE, SIZE) == BASE).all()
