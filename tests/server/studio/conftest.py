"""The studio under test: a real server, a real Chromium, and a worker played by `tests.server.journals`."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contract.job import new_job_id
from contract.video import CLIP_FRAMES, FPS, clips_of_frames
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from model.media import ClipStream, encode_clip
from server.app import create_app
from server.keys import create_key
from tests.server.conftest import CARD, Api, Live, empty, make_settings, serving
from tests.server.inputs import PERSON, PRODUCT, audio_bytes, form, video_bytes
from tests.server.journals import fail, finish_clip, start, succeed
from tools.browser import BINARY, Browser, Page, running_browser

THREE_CLIPS = audio_bytes(seconds=9.0)
VIDEO = video_bytes(60)


@dataclass(frozen=True)
class MadeClip:
    """A finished clip as a worker makes it: alone, and as a part of a stream with sound."""

    video: bytes
    fragment: bytes
    header: bytes


@cache
def made_clips(num_frames: int) -> list[MadeClip]:
    """The clips of a video of so many frames, each of another colour."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "speech.wav").write_bytes(audio_bytes(seconds=num_frames / FPS))
        stream, made = ClipStream(folder / "speech.wav", num_frames), []
        for number in range(clips_of_frames(num_frames)):
            count = min(CLIP_FRAMES, num_frames - number * CLIP_FRAMES)
            clip, header, fragment = (folder / f"{number}.{kind}" for kind in ("mp4", "header", "m4s"))
            encode_clip(np.full((count, 192, 112, 3), 60 + 60 * number % 190, np.uint8), clip)
            stream.write(number, clip, header, fragment)
            made.append(MadeClip(clip.read_bytes(), fragment.read_bytes(), header.read_bytes()))
    return made


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 96), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


Visit = Callable[[Page], Awaitable[None]]


@dataclass
class Studio:
    live: Live
    browser: Browser
    folder: Path

    @property
    def api(self) -> Api:
        return Api(self.live.app, None)  # type: ignore[arg-type]

    def visit(
        self,
        visit: Visit,
        at: str = "/",
        width: int = 1440,
        height: int = 900,
        script: str = "",
        shows: str = "header .health",
    ) -> None:
        """Open the studio in a fresh profile and do what `visit` says, once an element is there."""

        async def opened() -> None:
            async with self.browser.tab(width, height, script=script) as page:
                await page.call("Page.navigate", url=self.live.url + at)
                await page.until(f"document.querySelector({shows!r}) !== null")
                await visit(page)

        asyncio.run(opened())

    # Files

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    async def fill(
        self, page: Page, speech: bytes = THREE_CLIPS, prompts: tuple[str, ...] = ("A", "B", "C")
    ) -> None:
        """Put everything into the draft that a video needs."""
        await page.until("document.querySelector('[name=person_image]')")
        await page.choose_file("[name=person_image]", self.file("person.png", PERSON))
        await page.choose_file("[name=product_image]", self.file("product.jpg", PRODUCT))
        await page.choose_file("[name=audio]", self.file("speech.wav", speech))
        await page.until("document.querySelectorAll('.ingredient img').length === 2")
        await page.until(f"document.querySelectorAll('.slice textarea').length >= {len(prompts)}")
        for number, prompt in enumerate(prompts):
            await page.write(f".slice:nth-child({number + 1}) textarea", prompt)

    # Jobs

    def submit(self, token: str | None = None, **changes: Any) -> str:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.post(f"{self.live.url}/v1/generate", files=form(**changes), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def jobs(self) -> list[str]:
        return sorted(self.live.services.store.list_names("jobs"))

    def prompts_of(self, job_id: str) -> list[str]:
        return list(self.live.services.journal.read(job_id).submitted.params.prompts)

    def start(self, job_id: str) -> None:
        start(self.api, job_id)

    def finish_clip(self, job_id: str, clip: int) -> None:
        params = self.live.services.journal.read(job_id).submitted.params
        made = made_clips(params.num_frames)[clip]
        finish_clip(
            self.api,
            job_id,
            clip,
            video=made.video,
            poster=jpeg(),
            fragment=made.fragment,
            header=made.header,
            router_map=made.video if params.router_maps else None,
        )

    def succeed(self, job_id: str, started: bool = False) -> None:
        job = self.live.services.journal.read(job_id)
        if not started:
            self.start(job_id)
        for clip in range(len(job.clips), job.submitted.params.num_clips):
            self.finish_clip(job_id, clip)
        succeed(self.api, job_id, VIDEO, started=True)

    def fail(self, job_id: str, started: bool = False) -> None:
        fail(self.api, job_id, started)

    def key(self, name: str = "ada", **options: Any) -> str:
        return create_key(self.live.services.store, name, **options).token

    def many_jobs(self, count: int) -> None:
        """So many finished jobs: copies of one."""
        first = self.submit()
        self.succeed(first)
        folder = self.api.store.root / "jobs"
        for _ in range(count - 1):
            _copy(folder / first, folder / new_job_id())
        self.live.services.index.refresh()


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.hardlink_to(path)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BINARY is None:
        pytest.skip("no Chromium installed (apt install chromium)")
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Live]:
    """An application behind a socket, for all tests in a browser."""
    settings = make_settings(tmp_path_factory.mktemp("served"), redis_url)
    publish_card(FolderStore(settings.storage_dir), CARD)
    with serving(create_app(settings)) as running:
        yield running


@pytest.fixture
def studio(served: Live, chromium: Browser, redis_url: str, tmp_path: Path) -> Studio:
    """The studio with nothing stored."""
    empty(served.services, redis_url)
    return Studio(served, chromium, tmp_path)
