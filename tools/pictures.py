"""Pictures of the web pages for docs/studio.md, taken from the running server: `make pictures`.

It starts the one-machine stack with the bundled checkpoint, fills in the sample inputs in a real Chromium,
makes their video, and photographs what a seller sees on the way. With an argument: through the server there.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cointeract_client import AsyncClient
from PIL import Image

from cli.demo import DEMO_SEED, running_stack
from deploy.samples import BUNDLED
from tools.browser import BINARY, Browser, Page, running_browser

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
DESK: Final = (1440, 900)
PHONE: Final = (390, 780)
QUALITY: Final = 86
WAITING: Final = 2
"""How many videos wait in the picture for admins."""
PHONE_TABS: Final = ("photos", "scenes")
RENDER_TIMEOUT_S: Final = 900.0


async def _photograph(page: Page) -> Image.Image:
    await asyncio.sleep(0.8)  # for waveforms and posters to be drawn
    return Image.open(io.BytesIO(await page.screenshot())).convert("RGB")


async def _fill(page: Page) -> None:
    """The sample inputs, as a person would give them."""
    await page.until("document.querySelector('[data-field=size]')")
    files = {"person_image": BUNDLED.person, "product_image": BUNDLED.product, "audio": BUNDLED.audio}
    for field, path in files.items():
        await page.choose_file(f"[name={field}]", path)
    sentences = BUNDLED.sentences()
    await page.until(f"document.querySelectorAll('.slice textarea').length === {len(sentences)}")
    for number, sentence in enumerate(sentences):
        await page.write(f".slice:nth-child({number + 1}) textarea", sentence)
    await page.write("[data-field=seed]", str(DEMO_SEED))
    await page.says("footer", f"{len(sentences)} clips")


async def _of_a_busy_server(browser: Browser, url: str) -> Image.Image:
    """What an admin sees while one video is made and others wait."""
    async with AsyncClient(url) as client, browser.tab(*DESK) as admin:
        sentences = BUNDLED.sentences()[:WAITING]
        waiting = [
            await client.submit(person_image=BUNDLED.person, audio=BUNDLED.audio, prompt=sentence)
            for sentence in sentences
        ]
        await admin.call("Page.navigate", url=url + "/admin")
        await admin.says(".workers", "Making a video")
        await admin.says(".queue", f"{len(waiting)} waiting")
        await admin.says(".keys", "without a key")
        picture = await _photograph(admin)
        for job in waiting:
            await client.delete(job)
    return picture


async def _make(browser: Browser, url: str, page: Page, pictures: dict[str, Image.Image]) -> None:
    """Make the video; photograph the draft, the rendering and the result."""
    await _fill(page)
    pictures["studio-draft"] = await _photograph(page)
    await page.click("[data-field=make]")
    ready = "document.querySelectorAll('.clip.ready').length"
    await page.until(f"{ready} === 2", RENDER_TIMEOUT_S)
    await page.click("[aria-label='Play clip 2']")
    await page.until("document.querySelector('video')?.currentTime > 1")
    await page.run("document.querySelector('video').pause()")
    pictures["studio-rendering"] = await _photograph(page)
    pictures["admin"] = await _of_a_busy_server(browser, url)
    await page.says(".panel h2", "Your video is ready", RENDER_TIMEOUT_S)
    await page.until("document.querySelector('video')?.readyState >= 2")
    await page.run("document.querySelector('video').currentTime = 5")
    await page.resize(*DESK, dark=True)
    pictures["studio-finished"] = await _photograph(page)


async def _on_a_phone(page: Page) -> Image.Image:
    """The finished job and its ingredients on a phone, side by side."""
    await page.resize(*PHONE)
    job = await page.run("location.hash")
    views = [await _photograph(page)]
    await page.run("location.hash = ''")
    for tab in PHONE_TABS:
        await page.click(f".tabs [data-tab={tab}]")
        views.insert(-1, await _photograph(page))
    await page.run(f"location.hash = '{job}'")
    gap = 24
    joined = Image.new("RGB", (sum(view.width + gap for view in views) - gap, PHONE[1]), "#83839a")
    for number, view in enumerate(views):
        joined.paste(view, (number * (PHONE[0] + gap), 0))
    return joined


async def _visit(browser: Browser, url: str) -> dict[str, Image.Image]:
    pictures: dict[str, Image.Image] = {}
    async with browser.tab(*DESK) as page:
        await page.call("Page.navigate", url=url)
        await _make(browser, url, page, pictures)
        pictures["studio-phone"] = await _on_a_phone(page)
        if page.complaints:
            raise RuntimeError(f"the page complained: {page.complaints[:3]}")
    return pictures


def main() -> None:
    """Write docs/images/studio-*.webp and admin.webp."""
    if BINARY is None:
        sys.exit("No Chromium is installed: apt install chromium.")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(running_stack(folder / "data"))
        browser = stack.enter_context(running_browser(folder / "browser"))
        pictures = asyncio.run(_visit(browser, url))
    for picture, image in pictures.items():
        image.save(IMAGES / f"{picture}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
