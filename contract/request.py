"""The one model of a request: the fields that a client may set, and the errors of wrong ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from contract.choices import Fit, Preset, WebhookEvent
from contract.job import InputFiles, Priority
from contract.params import GenerationParams

PARAMS_FIELD: Final = "params"

MOST_CHARS: Final = 65_536
"""Length of the longest text that is examined at all. A server's own limit is lower."""

MOST_PROMPTS: Final = 10_000
"""Most prompts that are examined at all."""

MOST_STEPS: Final = 1000
"""Likewise of computed steps."""

MOST_METADATA: Final = 16

LARGEST_SEED: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

MOST_EVENTS: Final = 16
"""Most webhook events that a request may name."""

LONGEST_CONSENT: Final = 500
"""Characters."""

LONGEST_DEADLINE_S: Final = 30 * 86_400

SMALLEST_SHIFT: Final = 0.01
"""Of flow_shift. With one near nothing the noise levels would all be 0."""

FILE_FIELDS: Final = tuple(InputFiles.model_fields)
REQUIRED_FILES: Final = tuple(name for name, field in InputFiles.model_fields.items() if field.is_required())
SPOKEN_FILE: Final = "audio"
"""The file that `speech_text` may stand for."""

_CODE_OF_PYDANTIC: Final = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "control_characters": "control_characters",
    "string_too_long": "too_long",
    "too_long": "too_many",
    "dict_too_long": "too_many",
    "too_many": "too_many",
    "too_short": "missing_field",
}
_LIMITS_OF_PYDANTIC: Final = ("le", "lt", "ge", "gt", "max_length", "min_length", "expected", "pattern")


class FieldError(ValueError):
    """A field of a request cannot be used. `code` is stable and listed in docs/errors.md."""

    def __init__(
        self, code: str, message: str, field: str | None = None, limit: float | int | str | None = None
    ) -> None:
        super().__init__(code, message, field, limit)
        self.code, self.message, self.field, self.limit = code, message, field, limit

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


# Control characters but line ends and tabs, and halves of surrogate pairs. A pattern, because it looks at a
# megabyte in a millisecond.
_UNCLEAN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _clean(text: str) -> str:
    if _UNCLEAN.search(text):
        raise PydanticCustomError("control_characters", "must not contain control characters")
    return text


def _clean_line(text: str) -> str:
    if any(character in "\n\t\r" for character in text):
        raise PydanticCustomError("control_characters", "must be a single line")
    return _clean(text)


def _one_or_many(value: object) -> object:
    if isinstance(value, list) and len(value) > MOST_PROMPTS:  # before its items are looked at
        raise PydanticCustomError("too_many", "too many prompts", {"max_length": MOST_PROMPTS})
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(max_length=MOST_CHARS), AfterValidator(_clean)]


# The length stands before our own check: pydantic then counts characters, not "items".
ModelName = Annotated[str, Field(max_length=64), AfterValidator(_clean_line)]
WebhookUrl = Annotated[str, Field(max_length=2048), AfterValidator(_clean_line)]
Label = Annotated[str, Field(max_length=60, pattern=r"^[ -~\u00a0-\u00ff]*$"), AfterValidator(_clean_line)]
"""Latin-1: the letters that our font has."""
MetadataKey = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_clean_line)]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_clean)]


Prompts = Annotated[list[Text], FailFast(), BeforeValidator(_one_or_many)]


class GenerateFields(BaseModel):
    """The settings of one video. What is left out gets the checkpoint's default. No type is guessed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Prompts = Field(
        min_length=1,
        description="One prompt per clip of 3.2 seconds, in order; the last is used again as needed.",
    )
    model: ModelName | None = Field(None, description="Checkpoint to render with; see /v1/models.")
    negative_prompt: Text | None = Field(None, description="What the video should not show.")
    size: str | None = Field(
        None, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$", description='"WIDTHxHEIGHT", multiples of 16.'
    )
    width: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with height.")
    height: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with width.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps of each clip.")
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    flow_shift: float | None = Field(None, ge=SMALLEST_SHIFT, le=100, allow_inf_nan=False)
    product_scale: float = Field(
        1.0, ge=0.05, le=4, allow_inf_nan=False, description="Size of the product, 1 = as given."
    )
    seed: int | None = Field(
        None, ge=-1, le=LARGEST_SEED, description="Clip k uses seed + k. Random if not given, or -1."
    )
    num_clips: int | None = Field(
        None, ge=1, description="At most this many clips; all of the speech if not given."
    )
    fit: Fit | None = Field(None, strict=False, description="How the person photo is brought to the frame.")
    preset: Preset = Field(
        Preset.EXACT,
        strict=False,
        description="balanced and fast leave out steps, draft takes few; parity repeats the official code.",
    )
    computed_steps: list[int] | None = Field(
        None,
        max_length=MOST_STEPS,
        description="For preset balanced and fast, instead of the checkpoint's own choice: the steps, from "
        "0, that the network computes. The others are interpolated.",
    )
    speech_text: Text | None = Field(
        None, description="Instead of audio, where the server makes speech: what the person says."
    )
    voice: ModelName | None = Field(None, description="Who says speech_text; see /v1/models.")
    label: Label | None = Field(
        None, description='A text drawn into the lower left corner of the video, such as "AI-generated".'
    )
    consent: Text | None = Field(
        None,
        max_length=LONGEST_CONSENT,
        description="Who consented to being shown, or where that is on record; signed into the video.",
    )
    router_maps: bool = Field(
        False, description="Keep with each clip a small video of where the network saw hands and faces."
    )
    audio_face_mask: bool = Field(False, description="Let the speech move the face only.")
    priority: Priority | None = Field(
        None, strict=False, description="Normal if not given, or the highest that the key may ask for."
    )
    retention_s: int | None = Field(
        None, ge=60, description="Seconds to keep the finished job, at most the server's own setting."
    )
    cancel_after: int | None = Field(
        None,
        ge=5,
        le=LONGEST_DEADLINE_S,
        description="Seconds after the submit at which the job is canceled if it is not over.",
    )
    webhook_url: WebhookUrl | None = Field(
        None, description="https: URL that is told about the job's events."
    )
    webhook_events: list[Annotated[WebhookEvent, Field(strict=False)]] | None = Field(
        None,
        min_length=1,
        max_length=MOST_EVENTS,
        description="Events that the webhook is told; all if not given.",
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict,
        max_length=MOST_METADATA,
        description="Strings of yours, given back with the job.",
    )


class RetryFields(BaseModel):
    """What may be changed when a job is tried again: nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ExtendFields(RetryFields):
    """What a job gets when it is extended, beside more speech."""

    prompt: Prompts = Field(
        default_factory=list,
        min_length=1,
        description="One prompt for each clip that is rendered, in order; the last is used again as needed. "
        "If not given, the job's own go on.",
    )


class RedoFields(RetryFields):
    """What may be changed when a job is rendered anew from some clip on."""

    prompt: Prompts = Field(
        default_factory=list,
        min_length=1,
        description="Prompts of the clip and those behind it, in order. Clips for which none is given keep "
        "theirs.",
    )
    seed: int | None = Field(
        None,
        ge=-1,
        le=LARGEST_SEED,
        description="Clip k uses seed + k. If not given: the job's own with a prompt, a random one without.",
    )


Changes = TypeVar("Changes", bound=RetryFields)


def changes_of(values: Mapping[str, Any], model: type[Changes]) -> Changes:
    """The checked changes to a job; null is the same as not given. Raises FieldError."""
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise field_error(dict(error.errors()[0]), model.model_fields) from error


def fields_of(values: Mapping[str, Any]) -> GenerateFields:
    """The checked fields of a request; null is the same as not given.

    `params` may hold the settings of a finished job, as its JSON shows them. They count for every field that
    is not given itself. Raises FieldError for the first field that is wrong.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if PARAMS_FIELD in given:
        known = _fields_of_params(given.pop(PARAMS_FIELD))
        if given.keys() & {"preset", "num_inference_steps", "flow_shift"}:
            known.pop("computed_steps", None)  # they were chosen for other steps
        given = {**known, **given}
    try:
        return GenerateFields.model_validate(given)
    except ValidationError as error:
        raise field_error(dict(error.errors()[0]), GenerateFields.model_fields) from error


def _fields_of_params(params: object) -> dict[str, Any]:
    """The request that resolves to `params`. What follows from the speech is left out."""
    if not isinstance(params, dict):
        raise FieldError("invalid_value", "Expected an object.", PARAMS_FIELD)
    known = {*GenerationParams.model_fields, "size"}
    for name in params:
        if name not in known:
            raise unknown_field(f"{PARAMS_FIELD}.{name}", {f"{PARAMS_FIELD}.{other}" for other in known})
    fields = {name: value for name, value in params.items() if name in GenerateFields.model_fields}
    if "prompts" in params:
        fields["prompt"] = params["prompts"]
    if "width" in fields or "height" in fields:
        fields.pop("size", None)
    return fields


def unknown_field(name: str, known: Collection[str]) -> FieldError:
    """The error of a field that does not exist; it names the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return FieldError("unknown_field", f"There is no such field.{hint}", name)


def field_error(error: Mapping[str, Any], known: Collection[str]) -> FieldError:
    """One of pydantic's errors in our words. `known` are the names of all fields."""
    kind, context, message = error["type"], error.get("ctx", {}), error["msg"]
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if kind == "extra_forbidden" and len(error["loc"]) == 1:
        return unknown_field(field, known)
    code = _CODE_OF_PYDANTIC.get(kind)
    limit = next((context[name] for name in _LIMITS_OF_PYDANTIC if name in context), None)
    if code is None:
        code = "out_of_range" if kind.endswith(("_than", "_equal")) else "invalid_value"
    if kind == "string_pattern_mismatch" and field in GenerateFields.model_fields:
        message = f"Expected {GenerateFields.model_fields[field].description}"
    return FieldError(code, message, field or None, limit)
