"""What a preset means for one checkpoint: its sampling settings, and the steps that the network computes."""

from __future__ import annotations

from collections.abc import Sequence

from contract.card import CheckpointCard, CheckpointDefaults
from contract.choices import Preset
from contract.request import FieldError, GenerateFields
from contract.sampling import LEAST_SAVING, even_steps, nearest_steps, needed_steps


def preset_defaults(card: CheckpointCard, preset: Preset) -> CheckpointDefaults:
    """The sampling settings that a request leaves open."""
    return card.draft if preset is Preset.DRAFT and card.draft is not None else card.defaults


def preset_steps(card: CheckpointCard, preset: Preset, levels: Sequence[float]) -> tuple[int, ...] | None:
    """The steps that the network computes, of those at these noise levels; None: all."""
    if preset not in LEAST_SAVING:
        return None
    calibration = card.calibration.get(preset)
    if calibration is None:
        return even_steps(levels, LEAST_SAVING[preset])
    return nearest_steps(levels, calibration.levels)


def check_preset(fields: GenerateFields, card: CheckpointCard) -> None:
    """Raises FieldError if the checkpoint does not offer the preset, or it computes all steps anyway."""
    preset = fields.preset
    if preset not in card.presets:
        offered = ", ".join(card.presets)
        detail = (
            f"Preset {preset} runs the few steps that a checkpoint was distilled for. {card.name} was not: "
            f"its card has no settings `draft`. It offers {offered}."
        )
        raise FieldError("preset_not_supported", detail, "preset", offered)
    if fields.computed_steps is not None and preset not in LEAST_SAVING:
        detail = f"Preset {preset} computes every step; {' and '.join(LEAST_SAVING)} leave some out."
        raise FieldError("conflicting_fields", detail, "computed_steps")


def given_steps(given: Sequence[int], levels: Sequence[float]) -> tuple[int, ...]:
    """The steps that a request names itself, in order. Raises FieldError if they cannot do."""
    steps = tuple(sorted(set(given)))
    last = len(levels) - 1
    if steps and not 0 <= steps[0] <= steps[-1] <= last:
        raise FieldError("out_of_range", f"The steps are 0 to {last}.", "computed_steps", last)
    missing = sorted(needed_steps(levels) - set(steps))
    if missing:
        detail = f"What cannot be interpolated must be computed too: {', '.join(map(str, missing))}."
        raise FieldError("invalid_value", detail, "computed_steps")
    return steps
