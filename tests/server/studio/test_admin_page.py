"""The page for admins: what it shows and to whom, draining a worker, every screen, the keyboard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from contract.attention import AttentionBackend, AttentionReport
from contract.job import Priority, Stage, utcnow
from contract.memory import MemoryMode
from contract.speed import Speed
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.queue import JobQueue
from server.keys import KeyLimits, Scope, create_key, revoke_key
from tests.server.conftest import CARD
from tests.server.journals import finish_clip, start
from tests.server.studio.conftest import Studio
from tests.server.studio.test_states import AXE, NARROW, WIDE, check
from tools.browser import Page

pytestmark = pytest.mark.slow
LONG = "gpu-node-17.render.example-company.internal.4711-2-1785000000"
SPEED = Speed(per_step=1.0, per_clip=10.0, per_job=5.0)


def visit_admin(studio: Studio, visit: Callable[[Page], Awaitable[None]], key: str = "") -> None:
    script = f"sessionStorage.setItem('key', '{key}');" if key else ""
    studio.visit(visit, at="/admin", script=script, shows="main")


def queue_of(studio: Studio) -> JobQueue:
    """The queue as workers use it that are heard of once, and thought alive for the whole test."""
    settings = studio.live.services.settings.model_copy(update={"lease_ttl_s": 600.0})
    return JobQueue(settings, str(settings.redis_url))


def beat(studio: Studio, name: str, **more: Any) -> None:
    info: dict[str, Any] = {"checkpoint": CARD.name, "device": "cuda:0", "ready": True, **more}
    queue_of(studio).beat(WorkerInfo(name=name, **info))


def rendering(job: str, owner: str) -> RunningJob:
    progress = LiveProgress(attempt=2, stage=Stage.DENOISING, clip=0, num_clips=1, step=2, num_steps=4)
    return RunningJob(
        job_id=job, attempt=2, owner=owner, priority=Priority.HIGH, cost=1, started_at=utcnow(),
        progress=progress,
    )  # fmt: skip


def busy_server(studio: Studio) -> str:
    """Workers of each kind, jobs that wait, keys with and without limits. Returns an admin's key."""
    store = studio.live.services.store
    admin = create_key(store, "boss", [Scope.ADMIN])
    shop = create_key(store, "a shop with a very long name, Unlimited & Sons")
    gone = create_key(store, "gone")
    studio.submit(gone.token)
    revoke_key(store, gone.key.id)
    jobs = [studio.submit(shop.token) for _ in range(4)]
    taken = [jobs[0], studio.submit(shop.token), studio.submit(shop.token)]
    for job in taken:  # as workers take them
        studio.live.services.hints.withdraw(studio.live.services.journal.read(job))
    studio.succeed(taken[1])
    studio.fail(taken[2])
    start(studio.api, jobs[0])
    finish_clip(studio.api, jobs[0], 0, gpu_seconds=50.0, at=utcnow() - timedelta(days=2))
    limits = KeyLimits(max_queued=30, gpu_seconds_per_day=60.0, max_stored_bytes=1000)
    narrower = shop.key.model_copy(update={"limits": limits})
    store.write(f"keys/{shop.key.id}.json", narrower.model_dump_json().encode())
    attention = AttentionReport(backend=AttentionBackend.CUDNN, tokens=1000)
    running = rendering(jobs[0], shop.key.id)
    beat(studio, LONG, running=running, speed=SPEED, attention=attention, memory_mode=MemoryMode.RESIDENT)
    beat(
        studio, "w2", problem="The folder /models/large has no checkpoint: no model_index.json.", ready=False
    )
    beat(studio, "w3", ready=False)
    queue_of(studio).tell_troubles(
        "host", {"reaper": "The reaper dies again and again: see logs/reaper.log."}, 600
    )
    studio.live.services.hints._queue._snapshots.clear()
    return admin.token


def rows(label: str) -> str:
    return f"[...document.querySelectorAll('[aria-label=\"{label}\"] tbody tr')].map((row) => row.innerText)"


def test_it_shows_workers_queue_keys_and_use_on_every_screen_and_axe_finds_nothing(studio: Studio) -> None:
    token = busy_server(studio)

    async def visit(page: Page) -> None:
        await page.until("document.querySelectorAll('.worker').length === 3")
        busy, broken, loading = await page.run(
            "[...document.querySelectorAll('.worker')].map((one) => one.innerText)"
        )
        for said in (LONG, "Making a video", "Painting", "50 %", "a shop", "high priority", "try 2", "cudnn"):
            assert said in busy
        assert "Cannot work" in broken
        assert "no model_index.json" in broken
        assert "Loading the model" in loading
        await page.says(".problems", "1 problem")
        await page.says(".problems", "The reaper dies again and again")
        await page.says(".queue", "4 waiting · 1 running")
        waiting = await page.run(rows(f"Waiting for {CARD.name}"))
        assert len(waiting) == 4
        assert "gone" in waiting[0]
        assert "a shop" in waiting[1]
        await page.until(f"{rows('Keys')}.length === 3")
        first, _, last = await page.run(rows("Keys"))
        for said in ("a shop", "read, submit", "3 waiting", "1 ready", "1 failed", "30 videos waiting"):
            assert said in first, said
        assert "revoked" in last
        assert await page.run("document.querySelectorAll('.keys progress.full').length") == 1, "of space"
        await page.click(".usage summary")
        assert len(await page.run(rows("Use by day"))) == 2, "today, and two days ago"
        await page.run(AXE + ";0")
        for dark in (False, True):
            for width, height in (*WIDE, *NARROW):
                await page.resize(width, height, dark)
                await check(page, f"{width} px, dark={dark}")
        assert page.complaints == []

    visit_admin(studio, visit, token)


def test_a_quiet_server_without_keys_says_so(studio: Studio) -> None:
    async def visit(page: Page) -> None:
        await page.says(".workers", "cointeract worker starts one")
        await page.says(".queue", "0 waiting")
        await page.says(".keys", "without a key")
        (key,) = await page.run(rows("Keys"))
        said = " ".join(key.split())
        assert said.startswith("without a key local everything none"), said
        assert said.endswith("none none"), "no space, no limits"
        await page.says(".tiles", "0 of 0")
        await page.run(AXE + ";0")
        for width, height in (*WIDE, *NARROW):
            await page.resize(width, height)
            await check(page, f"{width} px")
        assert page.complaints == []

    visit_admin(studio, visit)


def test_a_worker_is_drained_and_resumed_by_keyboard_alone(studio: Studio) -> None:
    beat(studio, "w1")
    beat(studio, "host.1-2-3")

    async def visit(page: Page) -> None:
        async def tab_to(label: str) -> None:
            for _ in range(30):
                if await page.run(f"document.activeElement.ariaLabel === '{label}'"):
                    return
                await page.press("Tab")
            raise AssertionError(f"Tab never comes to: {label}")

        await page.until("document.querySelectorAll('.worker').length === 2")
        await tab_to("Drain: w1")
        await page.press("Enter")
        await page.says("[data-worker=w1]", "Drained")
        assert await page.run("document.activeElement.ariaLabel") == "Resume: w1", "the focus stays"
        assert await page.text("#said") == "w1 takes no more videos."
        assert not queue_of(studio).may_work("w1")
        assert queue_of(studio).may_work("host.1-2-3")
        await page.says(".tiles", "1 of 2")
        await page.press(" ")
        await page.says("[data-worker=w1]", "Waiting for a video")
        assert await page.run("document.activeElement.ariaLabel") == "Drain: w1"
        assert queue_of(studio).may_work("w1")
        await page.press("Tab")
        assert await page.run("document.activeElement.ariaLabel") != "Drain: w1"

    visit_admin(studio, visit)


def test_a_worker_that_is_gone_cannot_be_drained_and_leaves_the_page(studio: Studio) -> None:
    beat(studio, "w1")

    async def visit(page: Page) -> None:
        await page.until("document.querySelector('[data-worker=w1] button')")
        await page.run("document.querySelector('[data-worker=w1] button').focus()")
        queue_of(studio).retire("w1")
        await page.run("document.querySelector('[data-worker=w1] button').click()")
        await page.until("document.querySelectorAll('.worker').length === 0")
        await page.says(".workers", "No worker is alive")
        assert await page.run("document.activeElement !== document.body")

    visit_admin(studio, visit)


def test_only_an_admin_gets_to_see_anything(studio: Studio) -> None:
    store = studio.live.services.store
    admin = create_key(store, "boss", [Scope.ADMIN])
    seller = create_key(store, "ada")

    async def visit(page: Page) -> None:
        await page.says(".key-form", "asks for a key")
        await page.run(AXE + ";0")
        await check(page, "the form")
        await page.write("#key", seller.token)
        await page.click(".key-form .primary")
        await page.says("#key-error", "not an admin's")
        assert "boss" not in await page.run("document.body.textContent")
        await page.write("#key", "ck_nothing")
        await page.click(".key-form .primary")
        await page.says("#key-error", "not valid")
        await page.write("#key", admin.token)
        await page.click(".key-form .primary")
        await page.says(".keys", "boss")
        assert await page.run("document.activeElement.tagName") == "MAIN"
        await page.click("header button")
        await page.says(".key-form", "asks for a key")

    visit_admin(studio, visit)


def test_a_key_that_is_revoked_meanwhile_shows_nothing_any_more(studio: Studio) -> None:
    store = studio.live.services.store
    admin = create_key(store, "boss", [Scope.ADMIN])
    create_key(store, "ada")

    async def visit(page: Page) -> None:
        await page.says(".keys", "ada")
        revoke_key(store, admin.key.id)
        await page.says("#key-error", "not valid")
        assert "ada" not in await page.text("body")

    visit_admin(studio, visit, admin.token)


def test_without_a_connection_what_was_seen_stays_and_it_goes_on_by_itself(studio: Studio) -> None:
    beat(studio, "w1")

    async def visit(page: Page) -> None:
        await page.until("document.querySelectorAll('.worker').length === 1")
        await page.call("Network.enable")
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await page.call("Network.emulateNetworkConditions", offline=True, **conditions)
        await page.says(".banner", "No connection")
        await page.run(AXE + ";0")
        await check(page, "offline")
        await page.says(".workers", "w1")
        beat(studio, "w2")
        await page.call("Network.emulateNetworkConditions", offline=False, **conditions)
        await page.until("document.querySelectorAll('.worker').length === 2")
        await page.until("document.querySelector('.banner') === null")

    visit_admin(studio, visit)


def test_the_use_of_one_key_can_be_looked_at_alone(studio: Studio) -> None:
    store = studio.live.services.store
    admin = create_key(store, "boss", [Scope.ADMIN])
    ada, bob = create_key(store, "ada"), create_key(store, "bob")
    studio.succeed(studio.submit(ada.token))
    studio.submit(bob.token)

    async def visit(page: Page) -> None:
        await page.says(".usage figure", "2 videos submitted")
        await page.write("#shown", bob.key.id)
        await page.says(".usage figure", "1 video submitted")
        await page.click(".usage summary")
        (day,) = await page.run(
            "[...document.querySelectorAll('.usage tbody tr')].map((row) =>"
            " [...row.querySelectorAll('td')].map((cell) => cell.innerText.trim()))"
        )
        assert day[1:] == ["1", "0", "0", "0", "none"]

    visit_admin(studio, visit, admin.token)


def test_the_studio_leads_admins_there_and_nobody_else(studio: Studio) -> None:
    store = studio.live.services.store
    keys = {
        scope: create_key(store, scope, [scope, Scope.READ]).token for scope in (Scope.ADMIN, Scope.SUBMIT)
    }

    async def admins(page: Page) -> None:
        await page.click("header nav a[href='/admin']")
        await page.says(".keys", "submit")

    async def others(page: Page) -> None:
        await page.says("header nav", "Key")
        assert await page.run("document.querySelector('a[href=\"/admin\"]') === null")

    for visit, scope in ((admins, Scope.ADMIN), (others, Scope.SUBMIT)):
        studio.visit(visit, script=f"sessionStorage.setItem('key', '{keys[scope]}');")


def test_a_video_in_the_list_opens_in_the_studio(studio: Studio) -> None:
    job = studio.submit(prompt=["a very blue vase"])

    async def visit(page: Page) -> None:
        await page.until(f"document.querySelector('.queue a')?.innerText === '{job}'")
        await page.click(".queue a")
        await page.says(".panel", "a very blue vase")
        assert httpx.get(f"{studio.live.url}/v1/jobs/{job}").json()["status"] == "queued"

    visit_admin(studio, visit)
