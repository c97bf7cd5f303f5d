"""Parsing JSON of strangers within bounds of time and memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from server.errors import ApiError, printable

MOST_STRUCTURE: Final = 100_000
"""Commas and brackets of a body. Each may stand for an object of hundreds of bytes in memory; a request has a
few, and its texts a few thousand.
"""


def parse_object(
    body: bytes, field: str | None = None, most_structure: int = MOST_STRUCTURE
) -> dict[str, Any]:
    """The JSON object in a body, or in a field of a form. Raises ApiError.

    No key may be given twice: readers differ in which one counts, so what was checked might not be what runs.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > most_structure:
        detail = f"The JSON has more than {most_structure} commas and brackets."
        raise ApiError("too_many", detail, field=field, limit=most_structure)
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except (RecursionError, ValueError) as error:
        deep = isinstance(error, RecursionError)
        detail = "The JSON is nested too deeply." if deep else f"This is not JSON: {printable(str(error))}"
        raise ApiError("malformed_body" if field is None else "invalid_value", detail, field=field) from error
    if isinstance(value, dict):
        return value
    if field is None:
        raise ApiError("malformed_body", "The body must be a JSON object.")
    raise ApiError("invalid_value", "Expected a JSON object.", field=field)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = next(name for name, count in times.items() if count > 1)
        raise ApiError("duplicate_field", "This field may be given once only.", field=printable(twice, 64))
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
