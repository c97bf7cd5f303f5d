"""The one model of a request: the fields that a client may set, and how a wrong one is told."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from contract.choices import Fit, Preset
from contract.job import InputFiles, Priority

LARGEST_SEED: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

FILE_FIELDS: Final = tuple(InputFiles.model_fields)
REQUIRED_FILES: Final = tuple(name for name, field in InputFiles.model_fields.items() if field.is_required())

_CODE_OF_PYDANTIC: Final = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "control_characters": "control_characters",
    "string_too_long": "too_long",
    "too_long": "too_many",
    "dict_too_long": "too_many",
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


def _clean(text: str) -> str:
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\n\t\r"):
            raise PydanticCustomError("control_characters", "must not contain control characters")
    return text


def _clean_line(text: str) -> str:
    if any(character in "\n\t\r" for character in text):
        raise PydanticCustomError("control_characters", "must be a single line")
    return _clean(text)


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_clean)]
Line = Annotated[str, AfterValidator(_clean_line)]


class GenerateFields(BaseModel):
    """The settings of one video; whatever is left out gets the checkpoint's default. Strict: no type is
    guessed.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Annotated[list[Text], BeforeValidator(_one_or_many)] = Field(
        min_length=1,
        description="One prompt per clip of 3.2 seconds, in order; the last is used again as needed.",
    )
    model: Line | None = Field(None, max_length=64, description="Checkpoint to render with; see /v1/models.")
    negative_prompt: Text | None = Field(None, description="What the video should not show.")
    size: str | None = Field(
        None, pattern=r"^[0-9]{2,5}x[0-9]{2,5}$", description='"WIDTHxHEIGHT", multiples of 16.'
    )
    width: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with height.")
    height: int | None = Field(None, ge=16, le=16_384, description="Instead of size, with width.")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    flow_shift: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    product_scale: float = Field(
        1.0, ge=0.05, le=4, allow_inf_nan=False, description="Size of the product, 1 = as given."
    )
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Clip k uses seed + k. Random if not given."
    )
    num_clips: int | None = Field(
        None, ge=1, le=10_000, description="At most this many clips; all of the speech if not given."
    )
    fit: Fit | None = Field(None, strict=False, description="How the person photo is brought to the frame.")
    preset: Preset = Field(
        Preset.EXACT, strict=False, description="parity repeats the official code, defects included."
    )
    audio_face_mask: bool = Field(False, description="Let the speech move the face only.")
    priority: Priority = Field(Priority.NORMAL, strict=False)
    retention_s: int | None = Field(
        None, ge=60, description="Seconds to keep the finished job, at most the server's own setting."
    )
    webhook_url: Line | None = Field(
        None, max_length=2048, description="https: URL that is told about the job's events."
    )
    metadata: dict[
        Annotated[Line, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]
    ] = Field(default_factory=dict, max_length=16, description="Strings of yours, given back with the job.")


def fields_of(values: Mapping[str, Any]) -> GenerateFields:
    """The checked fields of a request. Raises FieldError for the first that is wrong."""
    try:
        return GenerateFields.model_validate(values)
    except ValidationError as error:
        raise _of_pydantic(error.errors()[0]) from error


def _of_pydantic(error: ErrorDetails) -> FieldError:
    kind, context, message = error["type"], error.get("ctx", {}), error["msg"]
    code = _CODE_OF_PYDANTIC.get(kind)
    limit = next((context[name] for name in _LIMITS_OF_PYDANTIC if name in context), None)
    if code is None:
        code = "out_of_range" if kind.endswith(("_than", "_equal")) else "invalid_value"
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if kind == "string_pattern_mismatch":
        message = f"Expected {GenerateFields.model_fields[field].description}"
    return FieldError(code, message, field or None, limit)
