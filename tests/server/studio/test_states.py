"""Every state of the studio: what it says, that it fits every screen, that axe-core finds nothing in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import axe_core_python
import pytest

from contract.entries import Interrupted
from contract.job import utcnow
from tests.server.inputs import PERSON
from tests.server.studio.conftest import THREE_CLIPS, Studio
from tools.browser import CONTROL, SHIFT, Page

pytestmark = pytest.mark.slow

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
WIDE = ((1440, 900), (768, 1024))
NARROW = ((390, 844), (320, 640))
TABS = ("photos", "speech", "scenes", "watch", "videos")
FIND = """
(async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  const told = (node) => `${node.html} ${node.failureSummary}`;
  return violations.map((one) => `${one.id}: ${one.nodes.map(told).join(" | ")}`);
})()
"""


async def show_tab(page: Page, tab: str) -> None:
    await page.click(f".tabs [data-tab={tab}]")
    await page.until(f"document.querySelector('main').dataset.tab === '{tab}'")


async def check(page: Page, where: str) -> None:
    # Not `innerWidth`: a phone zooms out until everything fits.
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert await page.run(fits), f"{where}: wider than the screen"
    found = await page.run(FIND)
    assert found == [], f"{where}: " + "\n".join(found)


async def examine(page: Page, state: str, tabs: tuple[str, ...]) -> None:
    """Look at the page as it is on every screen, light and dark; on a phone, at these tabs."""
    await page.run(AXE + ";0")
    for dark in (False, True):
        for width, height in WIDE:
            await page.resize(width, height, dark)
            await check(page, f"{state}, {width} px, dark={dark}")
        for width, height in NARROW:
            await page.resize(width, height, dark)
            for tab in tabs:
                await show_tab(page, tab)
                await check(page, f"{state}, {width} px, dark={dark}, {tab}")


async def go(page: Page, job: str) -> None:
    await page.run(f"location.hash = 'job={job}'")


# --- each state: how it comes about, and what it says -----------------------------------------------------


async def empty(studio: Studio, page: Page) -> None:
    await page.says(".screen", "Your presenter shows your product")
    await page.says(".gallery", "What you make will be kept here.")
    await page.says("footer", "Still needed: a photo of the person, speech and what happens")


async def draft(studio: Studio, page: Page) -> None:
    await studio.fill(page, prompts=("She lifts it.", "", "She waves."))
    await page.says("footer", "9.0 s · 3 clips")
    await page.click(".panel summary")


async def errors(studio: Studio, page: Page) -> None:
    await page.until("document.querySelector('[data-field=size]')")
    await page.click("[data-field=make]")
    await page.says("#error-person_image", "Add a photo")


async def queued(studio: Studio, page: Page) -> None:
    await go(page, studio.submit(audio=THREE_CLIPS, prompt=["She lifts it.", "She waves."]))
    await page.says(".panel h2", "Waiting")
    await page.says(".caption", "Waiting for its turn")
    await page.says(".clip:nth-child(3)", "As before")


async def rendering(studio: Studio, page: Page) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    await go(page, job)
    await page.says(".panel h2", "Waiting")
    studio.start(job)
    studio.finish_clip(job, 0)
    await page.says(".clip:nth-child(1)", "Ready")
    await page.says(".clip:nth-child(2)", "Making")
    await page.until("document.querySelector('video')?.readyState >= 2")
    await page.click("[aria-label='Play clip 1']")
    await page.until("document.querySelector('video').currentTime > 0")
    await page.until("document.querySelector('.clip-body img')?.naturalWidth > 0")


async def interrupted(studio: Studio, page: Page) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)
    studio.finish_clip(job, 1)
    state = studio.live.services.journal.read(job)
    entry = Interrupted(at=utcnow(), attempt=1, reason="worker_lost", burns_attempt=True)
    studio.live.services.journal.append(state, entry)
    await go(page, job)
    await page.says(".panel h2", "Continuing from clip 3 soon")
    studio.start(job)
    await page.says(".panel h2", "Continuing from clip 3")


async def failed(studio: Studio, page: Page) -> None:
    job = studio.submit()
    await go(page, job)
    studio.fail(job)
    await page.says(".panel h2", "could not be made")
    await page.says(".panel .error", "Choose a smaller size")
    await page.says(".actions", "Edit")


async def canceled(studio: Studio, page: Page) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)
    await go(page, job)
    await page.says("footer", "Cancel")
    await page.click("footer button:not(.primary)")
    await page.says(".panel", "1 finished clip can still be watched")
    await page.until("document.querySelector('video')?.readyState >= 2")


async def finished(studio: Studio, page: Page) -> None:
    job = studio.submit(audio=THREE_CLIPS, prompt=["She lifts it.", "She turns it.", "She waves."])
    studio.succeed(job)
    await go(page, job)
    await page.says(".actions", "Save")
    await page.until("document.querySelector('video')?.readyState >= 2")
    await page.until("document.querySelector('.row-job img')?.naturalWidth > 0")
    await page.click(".panel .details summary")


async def continuing(studio: Studio, page: Page) -> None:
    job = studio.submit(audio=THREE_CLIPS, prompt=["She lifts it.", "She turns it.", "She waves."])
    studio.succeed(job)
    await go(page, job)
    await page.click("[aria-label='Redo from clip 2']")
    await page.says(".derive", "follows from it")


async def extending(studio: Studio, page: Page) -> None:
    await finished(studio, page)
    await page.click(".extend")
    await page.choose_file("[data-field=extend]", studio.file("more.wav", THREE_CLIPS))
    await page.says(".adding", "more.wav")
    title = "document.querySelector('.title-line').getBoundingClientRect().height"
    assert await page.run(title) > 15, "the name is not squeezed away where little room is left"


async def deleting(studio: Studio, page: Page) -> None:
    for job in (studio.submit(), studio.submit()):
        studio.succeed(job)
    await page.until("document.querySelectorAll('.row-job').length === 2")
    await page.click(".row-job .icon-button")
    await page.says(".toast", "Undo")
    await page.click(".gallery-head .link")


async def without_model(studio: Studio, page: Page) -> None:
    for path in (studio.api.store.root / "checkpoints").iterdir():
        path.unlink()
    await page.call("Page.reload")
    await page.says(".panel", "You can prepare everything meanwhile")


async def offline(studio: Studio, page: Page) -> None:
    await studio.fill(page)
    await page.call("Network.enable")
    await page.call(
        "Network.emulateNetworkConditions",
        offline=True,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
    await page.click("[data-field=make]")
    await page.says(".outlook", "sent again")


async def locked(studio: Studio, page: Page) -> None:
    studio.key()
    await page.call("Page.reload")
    await page.says(".key-form", "asks for a key")


State = Callable[[Studio, Page], Awaitable[None]]


@pytest.mark.parametrize(
    ("state", "tabs"),
    [
        (empty, TABS),
        (draft, TABS),
        (errors, ("photos", "speech", "scenes")),
        (queued, ("watch",)),
        (rendering, ("watch", "scenes")),
        (interrupted, ("watch",)),
        (failed, ("watch",)),
        (canceled, ("watch",)),
        (finished, ("watch", "scenes", "videos")),
        (continuing, ("scenes",)),
        (extending, ("scenes",)),
        (deleting, ("videos",)),
        (without_model, ("watch",)),
        (offline, ("photos",)),
        (locked, ()),
    ],
)
def test_a_state_says_what_it_is_fits_every_screen_and_is_accessible(
    studio: Studio, state: State, tabs: tuple[str, ...]
) -> None:
    async def visit(page: Page) -> None:
        await state(studio, page)
        await examine(page, state.__name__, tabs)
        expected = state.__name__ in ("offline", "locked")  # requests that fail are what they are about
        assert expected or page.complaints == []

    studio.visit(visit)


def test_a_portrait_video_fills_its_stage(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await finished(studio, page)
        for width, height in (*WIDE, *NARROW):
            await page.resize(width, height)
            if width < 700:
                await show_tab(page, "watch")
            box = (
                "(({ width, height }) => [width, height, innerHeight])"
                "(document.querySelector('.screen video').getBoundingClientRect())"
            )
            wide, tall, screen = await page.run(box)
            assert abs(wide / tall - 112 / 192) < 0.01, "the frame's own shape, without bars"
            assert tall > 0.45 * screen, f"{tall} of {screen} pixels at {width}"

    studio.visit(visit)


def test_the_whole_flow_goes_by_keyboard_alone(studio: Studio) -> None:
    person = studio.file("person.png", PERSON)
    speech = studio.file("speech.wav", THREE_CLIPS)
    files = {"person_image": person, "audio": speech}

    async def visit(page: Page) -> None:
        async def choose(details: dict[str, int]) -> None:
            field = await page.run("document.activeElement.name")
            await page.call(
                "DOM.setFileInputFiles", files=[str(files[field])], backendNodeId=details["backendNodeId"]
            )

        async def tab_to(condition: str) -> None:
            for _ in range(60):
                if await page.run(
                    f"Boolean((() => {{ const at = document.activeElement; return {condition}; }})())"
                ):
                    return
                await page.press("Tab")
            raise AssertionError(f"Tab never comes to: {condition}")

        page.on("Page.fileChooserOpened", choose)  # type: ignore[arg-type]
        await page.call("Page.setInterceptFileChooserDialog", enabled=True)
        await page.until("document.querySelector('[data-field=size]')")
        for field in files:
            await tab_to(f"at.name === '{field}'")
            await page.press("Enter")
            await page.until(f"document.querySelector('[name={field}]') === null")
        await tab_to("at.tagName === 'TEXTAREA' && at.closest('.slice')")
        await page.type("She lifts it.")
        await page.press("Enter", CONTROL)
        await page.until("location.hash.startsWith('#job=')")
        (job,) = studio.jobs()
        assert studio.prompts_of(job) == ["She lifts it."]
        studio.succeed(job)
        await page.until("document.querySelector('video')?.readyState >= 2")
        await tab_to("at.className === 'slice-play'")
        await page.press("ArrowRight")
        assert await page.run("document.activeElement.getAttribute('aria-label')") == "Play clip 2"
        await page.run("document.querySelector('.stage').focus()")
        await page.press(" ")
        await page.until("!document.querySelector('video').paused || document.querySelector('video').ended")
        await tab_to("at.innerText === 'Use again'")
        await page.press("Enter")
        await page.says(".panel h2", "New video")
        await page.until("document.activeElement !== document.body")
        await page.press("Tab", SHIFT)
        assert await page.run("document.activeElement !== document.body")

    studio.visit(visit)


def test_only_states_and_clips_are_announced(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)

    async def visit(page: Page) -> None:
        await go(page, job)
        await page.says(".panel h2", "Waiting")
        studio.start(job)
        await page.says("#said", "Making your video")
        studio.finish_clip(job, 0)
        await page.says("#said", "1 clip of 3 ready")
        studio.succeed(job, started=True)
        await page.says("#said", "Your video is ready")
        live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')]"
        assert await page.run(f"{live}.map((one) => one.id || one.className)") == ["toast-place", "said"]

    studio.visit(visit)


def test_two_tabs_agree_about_the_draft_and_the_videos(studio: Studio) -> None:
    jobs = [studio.submit(), studio.submit()]

    async def visit(page: Page) -> None:
        async with studio.browser.tab(context=page.context) as other:
            await other.call("Page.navigate", url=studio.live.url)
            await other.until("document.querySelectorAll('.row-job').length === 2")
            await page.call("Page.bringToFront")
            await studio.fill(page, prompts=("She lifts it.", "She turns it.", "She waves."))
            await other.until("document.querySelectorAll('.slice textarea')[2]?.value === 'She waves.'")
            await other.until("document.querySelectorAll('.ingredient img').length === 2")
            await page.click("[data-field=make]")
            await page.until("location.hash.startsWith('#job=')")
            await other.call("Page.bringToFront")
            await other.until("document.querySelectorAll('.row-job').length === 3")
            assert not await other.run("document.body.innerText.includes('answer was lost')")
        assert len(studio.jobs()) == len(jobs) + 1

    studio.visit(visit)
