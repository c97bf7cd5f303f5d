"""The web page and the API reference: a few static files, none from anywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from server.errors import ApiError

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
router = APIRouter(include_in_schema=False)


def _file(name: str) -> Response:
    return FileResponse(STATIC / name, media_type=MEDIA_TYPES[name], headers={"Cache-Control": "no-cache"})


@router.get("/")
async def page() -> Response:
    """Make a video in the browser."""
    return _file("index.html")


@router.get("/docs")
async def reference() -> Response:
    """The OpenAPI document, readable without any other site."""
    return _file("docs.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    if name not in MEDIA_TYPES:
        raise ApiError("not_found", "There is no such file.")
    return _file(name)
