"""A request as the texts of an HTML form, and back. The model of a request says what a text stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast, get_args, get_origin

from pydantic_core import from_json

from contract.request import PARAMS_FIELD, FieldError, GenerateFields

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


def _integer(text: str, _: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else text


def _number(text: str, _: str) -> object:
    return float(text) if _NUMBER.fullmatch(text) else text


def _truth(text: str, _: str) -> object:
    """Also as Python writes it: generated clients do."""
    return {"true": True, "True": True, "false": False, "False": False}.get(text, text)


def json_of(text: str, field: str) -> object:
    """A JSON text as what it stands for. Raises FieldError naming the field."""
    try:
        return from_json(text)
    except ValueError as error:
        raise FieldError("invalid_value", "Expected JSON.", field) from error


_READER_OF_TYPE: Final[Mapping[type, Callable[[str, str], object]]] = {
    int: _integer,
    float: _number,
    bool: _truth,
    dict: json_of,
}


def _type_of(field: str) -> type:
    """The type of a field's values, or of their items if the field holds several."""
    annotation = GenerateFields.model_fields[field].annotation
    options = [option for option in get_args(annotation) if option is not type(None)]
    plain = options[0] if annotation is not None and type(None) in get_args(annotation) else annotation
    return cast(type, get_origin(plain) or plain)


def _item_type_of(field: str) -> type:
    """The type of the values of a field that holds several: str or int."""
    annotation = GenerateFields.model_fields[field].annotation
    lists = [option for option in (annotation, *get_args(annotation)) if get_origin(option) is list]
    (item,) = get_args(lists[0])
    return cast(type, get_args(item)[0] if get_args(item) else item)


REPEATABLE: Final = frozenset(name for name in GenerateFields.model_fields if _type_of(name) is list)
"""Fields that a form may hold several times."""


def values_of_form(texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Form texts as the values they stand for. A text that is no number stays a text, which the strict model
    refuses. A browser sends an empty text for a field that its user left open; that counts as not given.
    """
    values: dict[str, Any] = {}
    for name, given in texts.items():
        if given == [""] and not (name in REPEATABLE and _item_type_of(name) is str):
            continue
        read: Callable[[str, str], object] | None = json_of if name == PARAMS_FIELD else None
        if name in GenerateFields.model_fields:
            read = _READER_OF_TYPE.get(_type_of(name))
        if name in REPEATABLE:
            read = _READER_OF_TYPE.get(_item_type_of(name))
            values[name] = given if read is None else [read(text, name) for text in given]
        else:
            values[name] = given[0] if read is None else read(given[0], name)
    return values


def form_of(fields: GenerateFields) -> dict[str, str | list[str]]:
    """The fields that were set, as form texts: `fields_of(values_of_form(...))` gives them back."""
    set_fields = fields.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {name: _text_of(value) for name, value in set_fields.items()}


def _text_of(value: object) -> str | list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    if value == "":
        return " "  # an empty text would count as not given
    return value if isinstance(value, str) else json.dumps(value)
