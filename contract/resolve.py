"""A request + a checkpoint's card + the speech's length → the settings of the video.

The API, `cointeract generate` without a server and the tests all decide here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from contract.card import CheckpointCard
from contract.choices import Fit, Preset
from contract.params import RANDOM_SEED, GenerationParams, draw_seed
from contract.presets import check_preset, given_steps, preset_defaults, preset_steps
from contract.request import FieldError, GenerateFields
from contract.sampling import noise_levels
from contract.video import MAX_DROPPED_FRAMES, SpeechLength, video_length

Value = TypeVar("Value")


def resolve(
    fields: GenerateFields,
    card: CheckpointCard,
    speech: SpeechLength,
    max_dropped_frames: int = MAX_DROPPED_FRAMES,
) -> GenerationParams:
    """All settings of the video: what the request leaves open comes from the card and the speech.

    Without a seed, one is drawn. Raises FieldError.
    """
    check_prompts(fields.prompt)
    width, height = frame_size(fields, card)
    parity = fields.preset is Preset.PARITY  # the official code drops no clip and stretches the person
    num_clips, num_frames = video_length(speech, fields.num_clips, 0 if parity else max_dropped_frames)
    check_preset(fields, card)
    defaults = preset_defaults(card, fields.preset)
    num_inference_steps = _first(fields.num_inference_steps, defaults.num_inference_steps)
    flow_shift = _first(fields.flow_shift, defaults.flow_shift)
    levels = noise_levels(num_inference_steps, flow_shift)
    return GenerationParams(
        prompts=tuple(fields.prompt),
        negative_prompt=_first(fields.negative_prompt, defaults.negative_prompt),
        width=width,
        height=height,
        num_inference_steps=num_inference_steps,
        guidance_scale=_first(fields.guidance_scale, defaults.guidance_scale),
        flow_shift=flow_shift,
        product_scale=fields.product_scale,
        seed=draw_seed() if fields.seed is None or fields.seed == RANDOM_SEED else fields.seed,
        num_clips=num_clips,
        num_frames=num_frames,
        fit=fields.fit or (Fit.STRETCH if parity else Fit.COVER),
        audio_face_mask=fields.audio_face_mask,
        label=fields.label or "",
        router_maps=fields.router_maps,
        preset=fields.preset,
        computed_steps=preset_steps(card, fields.preset, levels)
        if fields.computed_steps is None
        else given_steps(fields.computed_steps, levels),
    )


def check_prompts(prompts: Iterable[str]) -> None:
    """Raises FieldError if a prompt says nothing."""
    for prompt in prompts:
        if not prompt.strip():
            raise FieldError("invalid_value", "A prompt is empty; write one, or leave it out.", "prompt")


def check_files(given: Collection[str], card: CheckpointCard) -> None:
    """Raises FieldError if the checkpoint cannot use a file field that is given."""
    if "pose_video" in given and not card.pose:
        raise FieldError("pose_not_supported", "This checkpoint takes no pose video.", "pose_video")


def frame_size(fields: GenerateFields, card: CheckpointCard) -> tuple[int, int]:
    """Width and height of the video in pixels. Raises FieldError if the checkpoint cannot make that size."""
    if fields.size is not None and (fields.width is not None or fields.height is not None):
        raise FieldError("conflicting_fields", "Give either size, or width and height.", "size")
    if fields.size is None and fields.width is None and fields.height is None:
        width, height = (int(side) for side in card.sizes[0].split("x"))
        return width, height
    if fields.size is not None:
        width, height = (int(side) for side in fields.size.split("x"))
        names = ("size", "size")
    elif fields.width is None or fields.height is None:
        missing = "width" if fields.width is None else "height"
        raise FieldError("missing_field", "Give both width and height, or neither.", missing)
    else:
        width, height, names = fields.width, fields.height, ("width", "height")
    for side, name in zip((width, height), names, strict=True):
        if side % 16:
            detail = f"{side} is not good: width and height must be multiples of 16."
            raise FieldError("unsupported_size", detail, name, 16)
        if side < card.min_side:
            detail = f"{side} is too small for this checkpoint: at least {card.min_side}."
            raise FieldError("unsupported_size", detail, name, card.min_side)
    if width * height > card.max_pixels:
        detail = f"{width} × {height} pixels are too many for this checkpoint: at most {card.max_pixels}."
        raise FieldError("unsupported_size", detail, names[1], card.max_pixels)
    return width, height


def _first(given: Value | None, default: Value) -> Value:
    return default if given is None else given
