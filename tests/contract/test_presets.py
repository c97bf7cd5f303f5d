"""What each preset makes of a request."""

from __future__ import annotations

import pytest

from contract.card import Calibration, CheckpointCard, CheckpointDefaults
from contract.choices import Preset
from contract.params import GenerationParams
from contract.request import FieldError, fields_of
from contract.resolve import resolve
from contract.sampling import noise_levels
from contract.video import SpeechLength

FULL = CheckpointDefaults(num_inference_steps=20, guidance_scale=2.0, flow_shift=3.0, negative_prompt="n")
FEW = CheckpointDefaults(num_inference_steps=4, guidance_scale=1.0, flow_shift=5.0, negative_prompt="")
CARD = CheckpointCard(name="c", trained=True, sizes=("64x64",), min_side=32, max_pixels=10_000, defaults=FULL)


def params_of(card: CheckpointCard = CARD, **given: object) -> GenerationParams:
    return resolve(fields_of({"prompt": "p", "seed": 1, **given}), card, SpeechLength(16_000, 16_000))


def calibrated(steps: tuple[int, ...]) -> CheckpointCard:
    levels = tuple(noise_levels(20, 3.0)[step] for step in steps)
    found = Calibration(levels=levels, psnr_db=50.0, lowest_psnr_db=48.0)
    return CARD.model_copy(update={"calibration": {Preset.FAST: found}})


def test_exact_and_parity_compute_every_step() -> None:
    for preset in ("exact", "parity"):
        params = params_of(preset=preset)
        assert params.computed_steps is None
        assert params.preset.is_exact
        assert all(params.computes(step) for step in range(20))


def test_faster_presets_say_which_steps_they_compute_and_cost_less() -> None:
    exact, balanced, fast = (params_of(preset=preset) for preset in ("exact", "balanced", "fast"))
    assert balanced.computed_steps == (0, 3, 6, 9, 11, 13, 15, 17, 18, 19)
    assert fast.computed_steps == (0, 3, 6, 12, 16, 19)
    assert exact.cost() == 2 * balanced.cost() > 3 * fast.cost()
    assert not balanced.preset.is_exact
    assert [fast.computes(step) for step in (0, 1, 19)] == [True, False, True]


def test_a_calibrated_card_decides_where_the_computed_steps_lie() -> None:
    card = calibrated((0, 4, 6, 13, 17, 19))
    assert params_of(card, preset="fast").computed_steps == (0, 4, 6, 13, 17, 19)
    assert params_of(card, preset="balanced").computed_steps == params_of(preset="balanced").computed_steps
    finer = params_of(card, preset="fast", num_inference_steps=40).computed_steps
    assert finer == (0, 8, 11, 26, 34, 39), "as many points of the curve, however fine the grid"


def test_draft_takes_the_few_steps_of_a_distilled_checkpoint_and_is_refused_by_others() -> None:
    params = params_of(CARD.model_copy(update={"draft": FEW}), preset="draft")
    assert (params.num_inference_steps, params.guidance_scale, params.flow_shift) == (4, 1.0, 5.0)
    assert params.computed_steps is None
    with pytest.raises(FieldError, match="has no settings `draft`") as refused:
        params_of(preset="draft")
    assert (refused.value.code, refused.value.field) == ("preset_not_supported", "preset")
    assert refused.value.limit == "exact, balanced, fast, parity"


def test_params_sent_back_give_the_same_steps_though_the_card_has_changed() -> None:
    before = params_of(preset="fast")
    sent = before.model_dump(mode="json")
    card = calibrated((0, 2, 6, 10, 14, 19))
    assert params_of(card, preset="fast").computed_steps != before.computed_steps
    again = resolve(fields_of({"params": sent}), card, SpeechLength(16_000, 16_000))
    assert again == before
    other = resolve(fields_of({"params": sent, "num_inference_steps": 8}), card, SpeechLength(16_000, 16_000))
    assert other.computed_steps == params_of(card, preset="fast", num_inference_steps=8).computed_steps


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"computed_steps": [0, 6, 19]}, "conflicting_fields"),
        ({"preset": "parity", "computed_steps": [0, 6, 19]}, "conflicting_fields"),
        ({"preset": "fast", "computed_steps": []}, "invalid_value"),
        ({"preset": "fast", "computed_steps": [0, 3, 19]}, "invalid_value"),  # the experts come in at 6
        ({"preset": "fast", "computed_steps": [0, 3, 6, 18]}, "invalid_value"),
        ({"preset": "fast", "computed_steps": [-1, 0, 3, 6, 19]}, "out_of_range"),
        ({"preset": "fast", "computed_steps": [0, 3, 6, 19, 20]}, "out_of_range"),
        ({"preset": "fast", "computed_steps": list(range(1001))}, "too_many"),
        ({"preset": "fast", "computed_steps": ["0"]}, "invalid_value"),
    ],
)
def test_steps_that_cannot_do_are_refused(given: dict[str, object], code: str) -> None:
    with pytest.raises(FieldError) as refused:
        params_of(**given)
    assert (refused.value.code, (refused.value.field or "").split(".")[0]) == (code, "computed_steps")


def test_steps_of_ones_own_are_taken_in_order() -> None:
    assert params_of(preset="balanced", computed_steps=[19, 6, 3, 0, 3]).computed_steps == (0, 3, 6, 19)
