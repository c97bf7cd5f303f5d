"""The body of a request, read within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from server.errors import ApiError
from server.submit.json_body import parse_object

SMALL_JSON_BYTES: Final = 2**18
"""Bytes of a body that is settings only: no file, and no prompt."""
SMALL_JSON_STRUCTURE: Final = 10_000
"""Commas and brackets of such a body. Most of them may stand in texts."""


def declared_bytes(request: Request) -> int | None:
    """The length of the body as the client declares it, if it does."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def capped_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body in chunks. Raises ApiError once it is longer than `limit` bytes, or declares to be."""
    too_large = ApiError("request_too_large", f"The request is larger than {limit} bytes.", limit=limit)
    if (declared_bytes(request) or 0) > limit:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


async def has_body(request: Request) -> bool:
    """Whether a body comes. If so, its beginning is read, and lost."""
    async for chunk in request.stream():
        if chunk:
            return True
    return False


async def with_small_json(request: Request) -> Request:
    """The request, for a reader that takes its body as JSON, whole and without a limit. Raises ApiError."""
    body = b"".join([chunk async for chunk in capped_body(request, SMALL_JSON_BYTES)])
    if body:
        parse_object(body, most_structure=SMALL_JSON_STRUCTURE)
    return _Received(request.scope, request.receive, body)


class _Received(Request):
    """A request whose body was received before."""

    def __init__(self, scope: Scope, receive: Receive, body: bytes) -> None:
        rest: bytes | None = body

        async def replay() -> Message:
            nonlocal rest
            if rest is None:
                return await receive()
            message: dict[str, Any] = {"type": "http.request", "body": rest, "more_body": False}
            rest = None
            return message

        super().__init__(scope, replay)
