"""The OpenAPI document as a whole: names from which clients are generated, and errors in their true shape."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from server.schemas import ProblemDocument

_OF_FASTAPI: Final = ("HTTPValidationError", "ValidationError")
"""Schemas of errors that we never answer with."""


class OpenAiErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class OpenAiError(BaseModel):
    """An error in the shape of OpenAI's API."""

    error: OpenAiErrorDetail


def operation_name(route: APIRoute) -> str:
    """The name of an operation: that of its function, from which generated clients make theirs."""
    return route.name


class Application(FastAPI):
    """An application whose document says what it really answers."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name in _OF_FASTAPI:
        schemas.pop(name, None)
    for model in (ProblemDocument, OpenAiErrorDetail, OpenAiError):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    for path, methods in document["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            responses.pop("422", None)
            if path.startswith("/v1/videos"):
                responses["default"] = {
                    "description": "An error in OpenAI's envelope; `code` is as in docs/errors.md.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAiError"}}},
                }
    return document
