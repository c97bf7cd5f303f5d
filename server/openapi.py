"""Describes parts of routes that FastAPI does not see: bodies that are read as streams, files, and errors."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Header

from contract.request import (
    FILE_FIELDS,
    REQUIRED_FILES,
    SPOKEN_FILE,
    ExtendFields,
    GenerateFields,
    RedoFields,
)
from server.errors import PROBLEM_MEDIA_TYPE
from server.openai import CreateVideo
from server.schemas import GenerateJson, JobView

Responses = dict[int | str, dict[str, Any]]
IdempotencyKey = Annotated[str | None, Header(description="Makes repeating the request safe for 48 h.")]
Prefer = Annotated[
    str | None,
    Header(
        description="`wait=N`: hold the answer up to N s for a finished job; `wait` alone: as long as the "
        "server grants."
    ),
]

PROBLEM: Final[Responses] = {
    "default": {
        "description": "A problem document (RFC 9457); `code` is stable, see docs/errors.md.",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
}


FILE_SCHEMA: Final = {"type": "string", "format": "binary"}


def file_of(*media_types: str) -> Responses:
    """The answers of a route that sends a file of one of these types."""
    content: dict[str, Any] = {media_type: {"schema": FILE_SCHEMA} for media_type in media_types}
    return {
        200: {"description": "The file.", "content": content},
        206: {"description": "The part that was asked for.", "content": content},
        302: {"description": "The file is at this address, for an hour (`COINTERACT_STORAGE_REDIRECTS`)."},
        304: {"description": "Not changed."},
    }


FINISHED_ALREADY: Final[Responses] = {200: {"model": JobView, "description": "Finished already."}}
VIDEO_FILE: Final = file_of("video/mp4")
PICTURE_FILE: Final = file_of("image/jpeg")


def _generate_body() -> dict[str, Any]:
    """The request body of a submit."""
    form = GenerateFields.model_json_schema()
    files = {name: dict(FILE_SCHEMA) for name in FILE_FIELDS}
    form["properties"] = {**form["properties"], **files}
    form["properties"]["prompt"] = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "minLength": 1},
    }
    form["required"] = ["prompt", *(name for name in REQUIRED_FILES if name != SPOKEN_FILE)]
    as_json = GenerateJson.model_json_schema()
    for schema in (form, as_json):
        for name, definition in schema.pop("$defs", {}).items():
            _inline(schema, f"#/$defs/{name}", definition)
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": as_json}},
    }


def _inline(schema: Any, reference: str, definition: dict[str, Any]) -> None:
    """Replace every reference to a definition by the definition itself."""
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for child in list(children):
        _inline(child, reference, definition)
    if isinstance(schema, dict) and schema.get("$ref") == reference:
        del schema["$ref"]
        schema.update({key: value for key, value in definition.items() if key not in schema})


def _body(form: dict[str, Any], as_json: dict[str, Any], required: bool) -> dict[str, Any]:
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": as_json}}
    return {"requestBody": {"required": required, "content": content}}


def _extend_body() -> dict[str, Any]:
    """More speech, as a file or as a URL, and prompts."""
    form, as_json = ExtendFields.model_json_schema(), ExtendFields.model_json_schema()
    form["properties"] |= {"audio": {"type": "string", "format": "binary"}}
    as_json["properties"] |= {"audio": GenerateJson.model_json_schema()["properties"]["audio"]}
    for schema in (form, as_json):
        schema["required"] = ["audio"]
    return _body(form, as_json, required=True)


EXTEND_BODY: Final = _extend_body()
REDO_BODY: Final = _body(RedoFields.model_json_schema(), RedoFields.model_json_schema(), required=False)
GENERATE_BODY: Final = {"requestBody": _generate_body()}


def form_fields() -> dict[str, Any]:
    """JSON Schemas of the fields of a submit as a form, by their names."""
    content: Any = GENERATE_BODY["requestBody"]["content"]
    fields: dict[str, Any] = content["multipart/form-data"]["schema"]["properties"]
    return fields


_VIDEO_SCHEMA: Final = CreateVideo.model_json_schema()
VIDEO_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": _VIDEO_SCHEMA} for kind in ("multipart/form-data", "application/json")},
    }
}
