"""Texts as people write them: long ones, emoji, from right to left; texts and files that are dropped."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.server.inputs import audio_bytes
from tests.server.studio.conftest import Studio
from tools.browser import Page

pytestmark = pytest.mark.slow
SAVED_AS = "HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };"


def test_characters_are_counted_as_the_server_counts_them(studio: Studio) -> None:
    most = studio.live.services.settings.max_prompt_chars

    async def visit(page: Page) -> None:
        await studio.fill(page, prompts=("🎉" * most,))
        await page.says("footer", "9.0 s · 3 clips")
        await page.click("[data-field=make]")
        await page.until("location.hash.startsWith('#job=')")
        assert studio.prompts_of(studio.jobs()[0]) == ["🎉" * most]
        await page.run("location.hash = ''")
        await page.write(".slice textarea", "🎉" * (most + 1))
        await page.click("[data-field=make]")
        await page.says("#error-prompt", f"at most {most} characters")

    studio.visit(visit)


def test_a_video_of_a_very_long_prompt_can_be_given_a_name(studio: Studio) -> None:
    job = studio.submit(prompt=["🎉 " * 900])
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.click("[data-field=rename]")
        await page.until("document.querySelector('[data-field=title]')")
        await page.press("Enter")
        await page.until("document.querySelector('[data-field=rename]')")
        for _ in range(100):
            if title := httpx.get(f"{studio.live.url}/v1/jobs/{job}").json()["metadata"].get("title"):
                break
            await asyncio.sleep(0.1)
        assert ("🎉 " * 900).startswith(title)
        assert len(title) > 500
        assert await page.text(".toast-place") == ""
        for width in (320, 1440):
            await page.resize(width, 700)
            assert await page.run(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        label = await page.run("document.querySelector('.row-job .icon-button').ariaLabel.isWellFormed()")
        assert label, "no half of an emoji"

    studio.visit(visit, at=f"/#job={job}")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Green can, take 2!", "green-can-take-2.mp4"),
        ("מרימה את הכוס", "מרימה-את-הכוס.mp4"),
        ("🎉🎉", "video.mp4"),
    ],
)
def test_a_saved_video_is_named_in_its_own_letters(studio: Studio, title: str, name: str) -> None:
    job = studio.submit(prompt=[title])
    studio.succeed(job)

    async def visit(page: Page) -> None:
        await page.says(".actions", "Save")
        await page.click(".actions .primary")
        await page.until(f"window.savedAs === {json.dumps(name)}")
        direction = "getComputedStyle(document.querySelector('.title-line')).direction"
        assert await page.run(direction) == ("rtl" if title[0] == "מ" else "ltr")

    studio.visit(visit, at=f"/#job={job}", script=SAVED_AS)


def test_text_can_be_dropped_and_pasted_into_a_scene_although_a_picture_comes_with_it(studio: Studio) -> None:
    sent = (
        "(async () => { const data = new DataTransfer(); const options = { bubbles: true, cancelable: true };"
        "const area = document.querySelector('.slice textarea'); data.setData('text/plain', 'She waves.');"
        "const dropped = area.dispatchEvent(new DragEvent('drop', { dataTransfer: data, ...options }));"
        "const canvas = new OffscreenCanvas(64, 96); canvas.getContext('2d').fillRect(0, 0, 9, 9);"
        "data.items.add(new File([await canvas.convertToBlob()], 'cell.png'));"
        "const pasted = area.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, ...options }));"
        "return [dropped, pasted]; })()"
    )

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('.slice textarea')")
        assert await page.run(sent) == [True, True], "the browser may put it in"
        assert await page.run("document.querySelectorAll('.ingredient img').length") == 0

    studio.visit(visit)


def test_a_long_file_name_in_a_message_stays_on_a_narrow_screen(studio: Studio) -> None:
    dropped = (
        "(() => { const data = new DataTransfer(); data.items.add(new File(['notes'],"
        " 'x'.repeat(200) + '.txt'));"
        "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true })); })()"
    )

    async def visit(page: Page) -> None:
        await page.run(dropped)
        await page.says(".toast", "Choose JPEG")
        box = "document.querySelector('.toast').getBoundingClientRect()"
        assert await page.run(f"{box}.left >= 0 && {box}.right <= innerWidth"), "wider than the screen"

    studio.visit(visit, width=320, height=640)


@pytest.mark.parametrize(("dropped", "scenes"), [(0, 2), (2, 1), (40, 1)])
def test_frames_that_the_server_drops_get_no_scene(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, dropped: int, scenes: int
) -> None:
    settings = studio.live.services.settings
    monkeypatch.setattr(
        studio.live.services, "settings", settings.model_copy(update={"max_dropped_frames": dropped})
    )

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-field=size]')")
        await page.choose_file("[name=audio]", studio.file("speech.wav", audio_bytes(seconds=82 / 25)))
        await page.says(".file-name", "3.3 s")
        assert await page.run("document.querySelectorAll('.slice textarea').length") == scenes

    studio.visit(visit)
