"""The static files: served from memory, compressed, and nothing in them comes from elsewhere."""

from __future__ import annotations

import gzip
import posixpath
import re
from pathlib import Path

import pytest

from server.routes.pages import FILES, STATIC
from tests.server.conftest import Api

LARGEST_PAGE_BYTES = 60_000
"""Of the studio over the wire, without what it loads only when it is needed."""
LOADED_LATER = ("docs.", "admin", "vendor/hls", "studio/again", "studio/recipes", "studio/recorder")


def test_the_pages_are_served_and_use_nothing_from_elsewhere(api: Api) -> None:
    assert {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()} == set(FILES)
    for path in ("/", "/admin", "/docs", *(f"/static/{name}" for name in FILES)):
        answer = api.client.get(path)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        if "/vendor/" in path:
            continue
        for address in re.findall(r"https?://[^\"'\s)`$]+", answer.text):
            assert address == "http://www.w3.org/2000/svg", (path, address)
        assert "innerHTML" not in answer.text
        if path.endswith((".html", "/", "/admin", "/docs")):
            assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", answer.text), (
                "inline code breaks the policy"
            )
    for wrong in ("/static/../app.py", "/static/nothing.js", "/static/studio/", "/static//etc/passwd"):
        assert api.client.get(wrong).status_code == 404, wrong


def test_vendored_libraries_come_with_their_licences() -> None:
    licences = FILES["vendor/LICENSES.txt"].plain.decode()
    for name in FILES:
        if name.startswith("vendor/") and name.endswith(".js"):
            assert f"{Path(name).name}:" in licences, name
    assert "Apache License" in licences
    assert "MIT License" in licences


def modules_of(name: str) -> set[str]:
    """A module and all that it imports, by their paths below the folder of static files."""
    known, new = {name}, [name]
    while new:
        at = new.pop()
        for path in re.findall(r'^import .*from "(\.[^"]+)";$', FILES[at].plain.decode(), re.MULTILINE):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(at), path))
            if found not in known:
                known.add(found)
                new.append(found)
    return known


@pytest.mark.parametrize(("page", "module"), [("/", "studio/app.js"), ("/admin", "admin/app.js")])
def test_a_page_names_every_module_that_it_will_need(api: Api, page: str, module: str) -> None:
    """Otherwise the browser would learn of them one after the other."""
    named = re.findall(r'rel="modulepreload" href="/static/([^"]+)"', api.client.get(page).text)
    assert len(named) == len(set(named))
    assert {module, *named} == modules_of(module)


def test_every_module_is_used() -> None:
    pages = modules_of("studio/app.js") | modules_of("admin/app.js")
    modules = {name for name in FILES if name.startswith(("studio/", "admin/"))}
    assert {name for name in modules - pages if not name.startswith(LOADED_LATER)} == set()


def test_the_studio_is_small_on_the_wire(api: Api) -> None:
    names = [name for name in FILES if not name.startswith(LOADED_LATER) and not name.endswith(".txt")]
    total = 0
    for name in names:
        answer = api.client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip, br"})
        assert answer.headers["content-encoding"] == "gzip", name
        total += int(answer.headers["content-length"])
    assert total < LARGEST_PAGE_BYTES, f"{total} bytes"


def test_a_file_is_compressed_only_for_whoever_takes_that(api: Api) -> None:
    plain = api.client.get("/static/style.css", headers={"Accept-Encoding": "identity"})
    small = api.client.get("/static/style.css", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.content == plain.content == gzip.decompress(FILES["style.css"].compressed)
    assert plain.headers["etag"] != small.headers["etag"]
    assert plain.headers["vary"] == small.headers["vary"] == "Accept-Encoding"
    again = api.client.get("/static/style.css", headers={"If-None-Match": small.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("header", ["GZIP", "br;q=1, gzip;q=0.5", "gzip;q=0"])
def test_a_coding_is_read_as_the_standard_says(api: Api, header: str) -> None:
    answer = api.client.get("/static/icon.svg", headers={"Accept-Encoding": header})
    assert answer.headers.get("content-encoding") == (None if header == "gzip;q=0" else "gzip")


def test_limits_are_the_ones_that_a_submit_is_checked_against(api: Api) -> None:
    limits = api.client.get("/v1/limits").json()
    settings = api.services.settings
    assert limits["files"]["image_bytes"] == settings.max_image_bytes
    assert limits["files"]["audio_seconds"] == settings.max_audio_seconds
    assert limits["max_steps"] == settings.max_steps
    assert limits["max_dropped_frames"] == settings.max_dropped_frames
    assert limits["fields"]["metadata"]["additionalProperties"]["maxLength"] == 512
    assert limits["fields"]["seed"]["anyOf"][0]["minimum"] == -1
    assert limits["key"] is None
