"""The web page, used as a person would, in a real browser."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from contract.choices import Preset
from server.keys import create_key
from server.routes.pages import MEDIA_TYPES, STATIC
from tests.server import browser
from tests.server.conftest import Api, Live
from tests.server.inputs import PERSON, PRODUCT, SPEECH, video_bytes
from tests.server.journals import succeed

pytestmark = pytest.mark.slow

in_browser = pytest.mark.skipif(browser.BINARY is None, reason="no Chromium installed (apt install chromium)")


def test_the_pages_are_served_and_use_nothing_from_elsewhere(api: Api) -> None:
    assert {path.name for path in STATIC.iterdir()} == set(MEDIA_TYPES)
    for path in ("/", "/docs", *(f"/static/{name}" for name in MEDIA_TYPES)):
        answer = api.client.get(path)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        for address in re.findall(r"https?://[^\"'\s)]+", answer.text):
            assert address == "http://www.w3.org/2000/svg"
        assert "innerHTML" not in answer.text
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", answer.text), (
            "inline code breaks the policy"
        )
    assert api.client.get("/static/../app.py").status_code == 404
    assert api.client.get("/static/nothing.js").status_code == 404


@in_browser
@pytest.mark.parametrize(("width", "height"), [(1100, 900), (360, 740)])
def test_a_person_makes_a_video_and_plays_it(live: Live, tmp_path: Path, width: int, height: int) -> None:
    for name, data in (("person.png", PERSON), ("product.jpg", PRODUCT), ("speech.wav", SPEECH)):
        (tmp_path / name).write_bytes(data)
    owned = Api(live.app, None)  # type: ignore[arg-type]

    async def visit() -> None:
        async with browser.browsing(tmp_path / "profile", width, height, mobile=width < 500) as page:
            await page.call("Page.navigate", url=live.url)
            await page.until("document.querySelector('#size')?.options.length === 2")
            await page.choose_file("[name=person_image]", tmp_path / "person.png")
            await page.choose_file("[name=product_image]", tmp_path / "product.jpg")
            await page.choose_file("[name=audio]", tmp_path / "speech.wav")
            await page.until("document.querySelector('#drop-audio').textContent.includes('1.0 s, 1 clip')")
            await page.run(
                "document.querySelector('textarea').value = '<img src=x onerror=alert(1)> <b>shows</b> a cup'"
            )
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), (
                "wider than the screen"
            )
            await page.screenshot(tmp_path / f"form-{width}.png")
            await page.run("document.querySelector('#preset').value = 'fast'")
            await page.run("document.querySelector('#submit').click()")
            await page.until("document.querySelector('#current h2').textContent === 'Waiting'")
            (job_id,) = live.services.store.list_names("jobs")
            assert live.services.journal.read(job_id).submitted.params.preset is Preset.FAST
            succeed(owned, job_id, video_bytes(25))
            await page.until("document.querySelector('#current video').readyState >= 2")
            assert await page.run("document.querySelector('#current .note').textContent") == "It draws toys."
            await page.until("document.querySelector('#jobs li .meta').textContent.startsWith('succeeded')")
            assert await page.run("document.querySelector('#current video').videoWidth") == 64
            assert await page.run("document.querySelectorAll('#jobs b, #jobs img').length") == 0
            await page.screenshot(tmp_path / f"done-{width}.png")
            assert [text for text in page.complaints if "readyz" not in text] == []

    asyncio.run(visit())


@in_browser
def test_the_page_asks_for_a_key_and_works_with_it(live: Live, tmp_path: Path) -> None:
    token = create_key(live.services.store, "ada").token

    async def visit() -> None:
        async with browser.browsing(tmp_path / "profile", 900, 700) as page:
            await page.call("Page.navigate", url=live.url)
            await page.until("document.querySelector('#key-form')?.hidden === false")
            await page.run(
                f"document.querySelector('#key').value = '{token}';"
                "document.querySelector('#key-form button').click()"
            )
            await page.until("document.querySelector('#size').options.length === 2")

    asyncio.run(visit())


@in_browser
def test_the_reference_shows_every_route(live: Live, tmp_path: Path) -> None:
    async def visit() -> None:
        async with browser.browsing(tmp_path / "profile", 900, 700) as page:
            await page.call("Page.navigate", url=f"{live.url}/docs")
            routes = sum(len(methods) for methods in live.app.openapi()["paths"].values())
            await page.until(f"document.querySelectorAll('#operations details').length === {routes}")
            assert page.complaints == []

    asyncio.run(visit())
