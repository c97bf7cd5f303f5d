"""Receives a create of OpenAI's Videos API: the same `Draft`, from fields with other names.

`input_reference` is the person, `image_reference` the product, `audio_reference` the speech. Each is a file,
a data: or https: URL, or an object with such a URL (as JSON, or spelled out in bracket keys).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request

from contract.form import values_of_form
from contract.request import GenerateFields, unknown_field
from contract.video import FPS, clips_of_frames
from server.errors import ApiError
from server.openai import CreateVideo
from server.services import Services
from server.submit.json_body import parse_object
from server.submit.multipart import FormRules
from server.submit.receive import (
    Draft,
    Scratch,
    body_type,
    draft_of,
    file_limits,
    from_urls,
    receive_form,
    receive_json,
)

FIELD_OF_REFERENCE: Final = {
    "input_reference": "person_image",
    "image_reference": "product_image",
    "audio_reference": "audio",
}
URL_KEYS: Final = ("url", "image_url", "audio_url", "data")
PLAIN_FIELDS: Final = CreateVideo.model_fields.keys() & GenerateFields.model_fields.keys()
_SECONDS: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")


def _texts(given: Mapping[str, list[str]]) -> dict[str, Any]:
    """The texts of a form, with objects built from bracket keys and from JSON."""
    values: dict[str, Any] = {}
    for name, texts in given.items():
        base, *path = re.split(r"[\[\]]+", name.removesuffix("]"))
        whole = not path
        if whole and (base == "extra_params" or (texts[0].startswith("{") and base in FIELD_OF_REFERENCE)):
            value: object = parse_object(texts[0].encode(), base)
        else:
            value = texts if name.endswith("[]") else texts[0]
        _put(values, [base, *(key for key in path if key)], value)
    return values


def _put(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Set the value at a path of keys. Raises ApiError if another value is in the way."""
    *outer, last = path
    for key in outer:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ApiError("conflicting_fields", "Given as a whole and in parts.", field=path[0])
    if last in values:
        raise ApiError("conflicting_fields", "Given as a whole and in parts.", field=path[0])
    values[last] = value


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a form as the numbers and booleans that they spell. Values from JSON stay as they are."""
    texts = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return {
        **values,
        **values_of_form(
            {name: given for name, given in texts.items() if all(isinstance(text, str) for text in given)}
        ),
    }


def _url(reference: object, field: str) -> object:
    """The URL in a reference: the reference itself, or the value of a known key, at most two levels deep."""
    for _ in range(2):
        if isinstance(reference, dict):
            found = [reference[key] for key in URL_KEYS if reference.get(key) is not None]
            if len(found) != 1:
                raise ApiError("invalid_value", f"Expected one of {', '.join(URL_KEYS)}.", field=field)
            reference = found[0]
    return reference


def _settings(values: dict[str, Any], typed: bool) -> dict[str, Any]:
    """The fields of POST /v1/generate, from those of a create."""
    extra = values.pop("extra_params", None) or {}
    if not isinstance(extra, dict):
        raise ApiError("invalid_value", "extra_params must be an object.", field="extra_params")
    seconds = values.pop("seconds", None)
    for name in values:
        if name not in PLAIN_FIELDS:
            raise unknown_field(name, {*PLAIN_FIELDS, *FIELD_OF_REFERENCE, "seconds", "extra_params"})
    if not typed:
        values, extra = _typed(values), _typed(extra)
    settings = {**values, **extra}  # `extra_params` may hold a longer list of prompts
    if seconds is not None:
        if not _SECONDS.fullmatch(str(seconds)) or float(seconds) <= 0:
            raise ApiError("invalid_value", 'Expected seconds, such as "8".', field="seconds")
        settings.setdefault("num_clips", max(1, clips_of_frames(round(float(seconds) * FPS))))
    return settings


async def receive_video(request: Request, services: Services, scratch: Scratch) -> Draft:
    """Receive a create, as multipart or JSON. Raises ApiError, FieldError, ClientDisconnect."""
    typed = body_type(request) == "application/json"
    if typed:
        values, files = await receive_json(request, services, scratch, _take_urls)
    else:
        limits = file_limits(services)
        rules = FormRules(
            {reference: limits[field] for reference, field in FIELD_OF_REFERENCE.items()},
            frozenset({*PLAIN_FIELDS, *FIELD_OF_REFERENCE, "seconds", "extra_params"}),
            long_texts=frozenset(FIELD_OF_REFERENCE),
            long_text_bytes=services.settings.max_json_bytes,
            brackets=True,
        )
        form = await receive_form(request, scratch, rules, services.settings)
        values = await asyncio.to_thread(_texts, form.texts)
        for reference in form.files:
            if reference in values:
                raise ApiError("conflicting_fields", "Given as a file and as text.", field=reference)
        files = {FIELD_OF_REFERENCE[reference]: file for reference, file in form.files.items()}
        files |= await from_urls(_take_urls(values), services, scratch)
    return draft_of(
        _settings({name: value for name, value in values.items() if value is not None}, typed), files
    )


def _take_urls(values: dict[str, Any]) -> dict[str, object]:
    """Take the URLs of files out of the values of a create."""
    found = {}
    for reference, field in FIELD_OF_REFERENCE.items():
        given = values.pop(reference, None)
        if given is not None:
            found[field] = _url(given, reference)
    return found
