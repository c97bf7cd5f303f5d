"""The web page and the API reference: a few static files, which load nothing from other sites."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import Request, Response

from server.delivery.conditional import conditional_file
from server.errors import ApiError
from server.routing import Router

STATIC: Final = Path(__file__).parent.parent / "static"
MEDIA_TYPES: Final = {
    "index.html": "text/html",
    "docs.html": "text/html",
    "app.js": "text/javascript",
    "docs.js": "text/javascript",
    "style.css": "text/css",
    "docs.css": "text/css",
    "icon.svg": "image/svg+xml",
}
router = Router(include_in_schema=False)


def _file(name: str, request: Request) -> Response:
    path = STATIC / name
    return conditional_file(path, request, path.stat(), MEDIA_TYPES[name], {"Cache-Control": "no-cache"})


@router.get("/")
def page(request: Request) -> Response:
    """Make a video in the browser."""
    return _file("index.html", request)


@router.get("/docs")
def reference(request: Request) -> Response:
    """The OpenAPI document, readable without any other site."""
    return _file("docs.html", request)


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    if name not in MEDIA_TYPES:
        raise ApiError("not_found", "There is no such file.")
    return _file(name, request)
