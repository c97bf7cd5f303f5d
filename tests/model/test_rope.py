"""Positions and rotations, against the table in the paper's supplement and complex arithmetic."""

import pytest
import torch

from model.kernels.rotary import apply_rotary
from model.network.rope import (
    GridRope,
    Positions,
    axis_frequencies,
    hoi_positions,
    motion_positions,
    person_positions,
    product_positions,
    rotary_table,
    spread,
)


def test_the_head_dimension_is_shared_44_42_42_at_full_size() -> None:
    assert [2 * axis.numel() for axis in axis_frequencies(128)] == [44, 42, 42]
    assert [2 * axis.numel() for axis in axis_frequencies(24)] == [8, 8, 8]


def test_an_odd_head_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        axis_frequencies(25)


def test_person_and_product_stand_at_times_of_their_own() -> None:
    assert person_positions(3, 2) == Positions([30], range(3), range(2))
    assert product_positions(4, 3, 1.0) == ([31], [0, 1, 2, 3], [0, 1, 2])


def test_a_smaller_product_is_squeezed_into_its_corner_and_never_vanishes() -> None:
    assert product_positions(10, 6, 0.7).rows == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert product_positions(10, 6, 0.7).columns == [0, 0, 1, 1, 2, 3]
    assert product_positions(4, 4, 0.01).rows == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="positive"):
        product_positions(4, 4, 0.0)


def test_motion_runs_back_in_time_at_three_resolutions() -> None:
    fine, middle, coarse = motion_positions([(8, 6), (4, 3), (2, 1)], 8, 6)
    assert (fine.times, middle.times, coarse.times) == ((-1,), (-3,), (-19, -14, -9, -4))
    assert fine.rows == list(range(8))
    assert middle.rows == [0, 2, 4, 7]
    assert coarse.rows == [0, 7]
    assert coarse.columns == [0]


def test_the_hoi_stream_never_shares_a_column_with_a_video_of_any_served_size() -> None:
    columns = hoi_positions(20, 80, 80).columns
    assert list(columns) == list(range(944, 1024))


def test_positions_are_spread_and_cut_to_whole_numbers() -> None:
    assert spread(45, 22)[:4] == [0, 2, 4, 6]
    assert spread(45, 22)[-1] == 44
    assert spread(7, 1) == [0]


def test_a_rotation_is_a_complex_product_and_negative_time_its_conjugate() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 12, 3, 24, generator=generator, dtype=torch.float64)
    positions = Positions([-5, 7], [1, 2, 3], [4, 1000])
    angles = GridRope(24)(positions).flatten(0, 2)
    assert angles.shape == (12, 12)
    turned = apply_rotary(states.float(), rotary_table(angles))
    pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)
    torch.testing.assert_close(turned.double(), expected, atol=2e-6, rtol=0)
    time = axis_frequencies(24)[0]
    torch.testing.assert_close(angles[0, : time.numel()], -5 * time)


def test_attention_scores_depend_on_distances_only() -> None:
    states = torch.randn(1, 2, 1, 24, generator=torch.Generator().manual_seed(1))
    scores = []
    for shift in (0, 11):
        table = rotary_table(GridRope(24)(Positions([shift, shift + 3], [shift], [shift])).flatten(0, 2))
        first, second = apply_rotary(states, table)[0, :, 0]
        scores.append(first @ second)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)


def test_half_precision_states_are_rotated_in_full_precision() -> None:
    states = torch.randn(1, 4, 2, 24, generator=torch.Generator().manual_seed(2)).bfloat16()
    table = rotary_table(GridRope(24)(Positions([900, 901, 902, 903], [0], [0])).flatten(0, 2))
    exact = apply_rotary(states.float(), table)
    turned = apply_rotary(states, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, exact.bfloat16())
