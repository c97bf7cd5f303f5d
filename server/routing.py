"""The router that our routes are written with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from contract.request import unknown_field
from server.body import with_small_json


class StrictRoute(APIRoute):
    """Refuses query parameters that the route does not know: a misspelt filter would give all jobs.

    A body that FastAPI parses, on the event loop, is checked before.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        parameters = get_flat_params(self.dependant)
        known = {each.alias for each in parameters if isinstance(each.field_info, Query)}

        takes_json = self.body_field is not None

        async def strict(request: Request) -> Response:
            for name in request.query_params:
                if name not in known:
                    raise unknown_field(name, known)
            return await handler(await with_small_json(request) if takes_json else request)

        return strict


class Router(APIRouter):
    """Answers HEAD wherever it answers GET, without listing that in the OpenAPI document.

    A HEAD runs the whole route; the server (uvicorn) then sends no body.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=StrictRoute, **options)

    def add_api_route(
        self, path: str, endpoint: Callable[..., Any], *, methods: Any = None, **options: Any
    ) -> None:
        super().add_api_route(path, endpoint, methods=methods, **options)
        if methods is not None and "GET" in methods:
            hidden = {**options, "include_in_schema": False}
            super().add_api_route(path, endpoint, methods=["HEAD"], **hidden)
