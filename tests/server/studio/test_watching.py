"""Watching a video while it is made: with sound, from clip to clip, and on into the finished one."""

from __future__ import annotations

import pytest

from server.routes.pages import FILES
from tests.server.studio.conftest import THREE_CLIPS, Studio
from tools.browser import Page

pytestmark = pytest.mark.slow
# The first links that the page gets have expired.
EXPIRED_LINKS = """
const ask = window.fetch;
let spoiled = 0;
window.fetch = async (path, options) => {
  const answer = await ask(path, options);
  if (!String(path).endsWith("/signed-urls") || spoiled++) return answer;
  return new Response((await answer.text()).replaceAll(/expires=\\d+/g, "expires=1"), { status: 200 });
};
"""
LIKE_SAFARI = "HTMLVideoElement.prototype.webkitSetPresentationMode = () => {};"


def loaded(name: str) -> str:
    return f"performance.getEntriesByType('resource').some((one) => one.name.endsWith('{name}'))"


def test_finished_clips_play_with_sound_while_the_others_are_made(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)

    async def visit(page: Page) -> None:
        video = "document.querySelector('video')"
        await page.until(f"{video}?.readyState >= 2")
        assert await page.run(f"{video}.dataset.kind") == "stream"
        assert await page.run(f"{video}.currentTime") == 0
        assert await page.run(loaded("vendor/hls.js"))
        await page.click("[aria-label='Play clip 1']")
        await page.until(f"{video}.currentTime > 0")
        studio.finish_clip(job, 1)
        await page.click("[aria-label='Play clip 2']")
        await page.until(f"{video}.currentTime > 3.3")
        assert await page.run(f"{video}.webkitAudioDecodedByteCount") > 0, "with sound"
        place = await page.run(f"{video}.currentTime")
        studio.succeed(job, started=True)
        await page.until(f"{video}.dataset.kind === 'video' && {video}.readyState >= 1")
        assert await page.run(f"{video}.currentTime") >= min(place, 1.9), "goes on where it was"
        assert page.complaints == []

    studio.visit(visit, at=f"/#job={job}")


def test_where_streams_play_by_themselves_nothing_is_loaded_for_them(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('video')?.src.endsWith('/stream.m3u8')")
        await page.until("document.querySelector('video').readyState >= 1")
        assert not await page.run(loaded("vendor/hls.js"))

    studio.visit(visit, at=f"/#job={job}", script=LIKE_SAFARI)


@pytest.mark.parametrize("finished", [False, True])
def test_links_that_have_expired_are_asked_for_again(studio: Studio, finished: bool) -> None:
    token = studio.key()
    job = studio.submit(token, audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)
    if finished:
        studio.succeed(job, started=True)

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('video')?.readyState >= 2")
        await page.until("document.querySelector('.clip-body img')?.naturalWidth > 0")

    key = f"sessionStorage.setItem('key', '{token}');"
    studio.visit(visit, at=f"/#job={job}", script=key + EXPIRED_LINKS)


def test_what_was_finished_of_a_canceled_video_plays_as_one(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    for clip in (0, 1):
        studio.finish_clip(job, clip)

    async def visit(page: Page) -> None:
        await page.says("footer", "Cancel")
        await page.click("footer button:not(.primary)")
        await page.until("document.querySelector('video')?.dataset.kind === 'preview'")
        await page.until("document.querySelector('video').duration > 6.3")

    studio.visit(visit, at=f"/#job={job}")


def test_router_maps_lie_over_the_picture_and_keep_its_time(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS, router_maps="true")
    studio.start(job)
    studio.finish_clip(job, 0)
    studio.finish_clip(job, 1)

    async def visit(page: Page) -> None:
        video, shown = "document.querySelector('video')", "document.querySelector('video.map')"
        await page.until(f"{video}?.readyState >= 2")
        await page.click("[aria-pressed=false].link:not(.gallery-head .link)")
        await page.until(f"{shown}?.src.endsWith('/clips/0/router_map')")
        place = "(({ x, y, width, height }) => [x, y, width, height].join())"
        picture, over = [await page.run(f"{place}({one}.getBoundingClientRect())") for one in (video, shown)]
        assert picture == over
        await page.run(f"{video}.currentTime = 4.2")
        await page.until(f"{shown}.src.endsWith('/clips/1/router_map')")
        await page.until(f"Math.abs({shown}.currentTime - 1.0) < 0.1")
        assert page.complaints == []

    studio.visit(visit, at=f"/#job={job}")


def test_the_player_of_streams_is_not_a_part_of_the_page() -> None:
    page = FILES["index.html"].plain.decode()
    assert "hls" not in page
