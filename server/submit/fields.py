"""From form texts or JSON values to the checked settings of one video; pydantic's errors in our own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from server.errors import ApiError, printable
from server.schemas import GenerateFields

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")
_INTEGERS: Final = ("width", "height", "num_inference_steps", "seed", "num_clips", "retention_s")
_NUMBERS: Final = ("guidance_scale", "flow_shift", "product_scale")
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


def checked_fields(values: Mapping[str, Any]) -> GenerateFields:
    """The settings that `values` spell out. Raises ApiError for the first field that is not valid."""
    try:
        return GenerateFields.model_validate(values)
    except ValidationError as error:
        raise _of_pydantic(error.errors()[0]) from error


def _of_pydantic(error: ErrorDetails) -> ApiError:
    kind, context = error["type"], error.get("ctx", {})
    code = _CODE_OF_PYDANTIC.get(kind)
    limit = next((context[name] for name in _LIMITS_OF_PYDANTIC if name in context), None)
    if code is None:
        code = "out_of_range" if kind.endswith(("_than", "_equal")) else "invalid_value"
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    return ApiError(code, printable(error["msg"]), field=printable(field, 100) or None, limit=limit)


def from_form(texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Form texts as the JSON values they stand for. What is no number stays a text, for the strict model to
    refuse.
    """
    values: dict[str, Any] = {}
    for name, given in texts.items():
        text = given[0]
        if name == "prompt":
            values[name] = given
        elif name in _INTEGERS and _INTEGER.fullmatch(text):
            values[name] = int(text)
        elif name in _NUMBERS and _NUMBER.fullmatch(text):
            values[name] = float(text)
        elif name == "audio_face_mask" and text in ("true", "false"):
            values[name] = text == "true"
        elif name == "metadata":
            values[name] = json_object(text, name)
        else:
            values[name] = text
    return values


def json_object(text: str, field: str) -> object:
    """A JSON text as what it stands for. Raises ApiError naming the field."""
    try:
        return from_json(text)
    except ValueError as error:
        raise ApiError("invalid_value", "Expected JSON.", field=field) from error
