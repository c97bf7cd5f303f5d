"""The router that our routes are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter


class Router(APIRouter):
    """Answers HEAD wherever it answers GET, without listing that in the OpenAPI document.

    A HEAD runs the whole route; the server (uvicorn) then sends no body.
    """

    def add_api_route(
        self, path: str, endpoint: Callable[..., Any], *, methods: Any = None, **options: Any
    ) -> None:
        super().add_api_route(path, endpoint, methods=methods, **options)
        if methods is not None and "GET" in methods:
            hidden = {**options, "include_in_schema": False}
            super().add_api_route(path, endpoint, methods=["HEAD"], **hidden)
