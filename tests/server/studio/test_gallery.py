"""The gallery keeps step with the server, whoever changes what is there, and wherever the page was opened."""

from __future__ import annotations

import httpx
import pytest

from tests.server.studio.conftest import THREE_CLIPS, Studio
from tools.browser import Page

pytestmark = pytest.mark.slow
ROWS = "document.querySelectorAll('.row-job').length"
# The list of all stays as it was first told.
OLD_LIST = """
const ask = window.fetch;
let first = null;
window.told = 0;
window.fetch = async (path, options) => {
  const answer = await ask(path, options);
  if (!String(path).startsWith("/v1/jobs?")) return answer;
  const text = await answer.text();
  first ??= text;
  window.told += 1;
  return new Response(first, { status: 200 });
};
"""


def delete(studio: Studio, job: str) -> None:
    """Delete a job as somebody else does: neither this page nor another tab is told."""
    assert httpx.delete(f"{studio.live.url}/v1/jobs/{job}").is_success


@pytest.mark.parametrize("number", [0, 1])
def test_a_video_that_somebody_else_deletes_goes(studio: Studio, number: int) -> None:
    jobs = [studio.submit(), studio.submit()]

    async def visit(page: Page) -> None:
        await page.until(f"{ROWS} === 2")
        delete(studio, jobs[number])
        await page.until(f"{ROWS} === 1")
        assert await page.run("document.querySelector('.row-job').dataset.id") == jobs[1 - number]

    studio.visit(visit)


@pytest.mark.parametrize("finished", [False, True])
def test_an_open_video_that_somebody_else_deletes_is_said_to_be_gone(studio: Studio, finished: bool) -> None:
    job = studio.submit(audio=THREE_CLIPS)
    studio.start(job)
    studio.finish_clip(job, 0)
    if finished:
        studio.succeed(job, started=True)

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('video')?.readyState >= 2")
        await page.run("document.querySelector('video').play()")
        delete(studio, job)
        await page.says(".toast", "does not exist")
        await page.says(".panel h2", "New video")
        await page.until(f"{ROWS} === 0")

    studio.visit(visit, at=f"/#job={job}")


def test_a_list_that_is_older_than_what_is_known_of_a_video_changes_nothing(studio: Studio) -> None:
    job = studio.submit(audio=THREE_CLIPS)

    async def visit(page: Page) -> None:
        await page.until(f"window.told > 0 && {ROWS} === 1")
        studio.start(job)
        await page.says(".panel h2", "Making your video")
        told = await page.run("window.told")
        await page.until(f"window.told >= {told + 2}")
        assert await page.text(".panel h2") == "Making your video"

    studio.visit(visit, at=f"/#job={job}", script=OLD_LIST)


def test_a_page_that_was_opened_at_the_oldest_video_lists_all(studio: Studio) -> None:
    oldest = studio.submit(prompt=["a very blue vase"])
    studio.many_jobs(69)

    async def visit(page: Page) -> None:
        await page.says(".panel", "a very blue vase")
        await page.until(f"{ROWS} >= 50")
        await page.until(f"(document.querySelector('.gallery > .link:last-child')?.click(), {ROWS} === 70)")

    studio.visit(visit, at=f"/#job={oldest}")
