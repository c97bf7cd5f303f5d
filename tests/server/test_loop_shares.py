"""The event loop as shared capacity: a tenant that floods the server waits, and nobody else does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.types import Message

from server.errors import ApiError
from server.guard import in_time
from server.keys import create_key
from server.loop_shares import CHUNK, MODEST, REQUEST, LoopShares
from tests.server.conftest import Api


@asynccontextmanager
async def busy_loop() -> AsyncIterator[None]:
    """The loop has something to do in each pass."""

    async def work() -> None:
        while True:
            until = time.perf_counter() + 0.003
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def use_all(shares: LoopShares, tenant: str) -> None:
    """Use more than is modest while nobody else is there."""
    for _ in range(round(2 * MODEST / REQUEST)):
        assert await shares.use(tenant, REQUEST) == 0


def test_a_tenant_who_is_alone_never_waits() -> None:
    async def run() -> None:
        async with busy_loop():
            await use_all(LoopShares(), "alone")

    asyncio.run(run())


def test_a_greedy_tenant_waits_until_the_loop_is_idle_and_a_modest_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.loop_shares.LONGEST_WAIT_S", 3600.0)

    async def run() -> None:
        shares = LoopShares()
        await use_all(shares, "greedy")
        async with busy_loop():
            assert await shares.use("modest", REQUEST) == 0
            waiting = asyncio.create_task(shares.use("greedy", REQUEST))
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert await shares.use("modest", CHUNK) == 0
            assert not waiting.done()
        assert await waiting > 0.2

    asyncio.run(run())


def test_work_goes_on_in_the_end_though_the_loop_stays_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.loop_shares.LONGEST_WAIT_S", 0.1)

    async def run() -> None:
        shares = LoopShares()
        await use_all(shares, "greedy")
        await shares.use("modest", REQUEST)
        async with busy_loop():
            uses = [shares.use("greedy", CHUNK) for _ in range(10)]
            assert min(await asyncio.wait_for(asyncio.gather(*uses), 30)) >= 0.1

    asyncio.run(run())


def test_who_gives_up_waiting_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.loop_shares.LONGEST_WAIT_S", 3600.0)

    async def run() -> None:
        shares = LoopShares()
        await use_all(shares, "greedy")
        await shares.use("modest", REQUEST)
        async with busy_loop():
            first, second = (asyncio.create_task(shares.use("greedy", REQUEST)) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
        await asyncio.wait_for(second, 30)

    asyncio.run(run())


def test_what_was_used_is_forgotten() -> None:
    now = [0.0]
    shares = LoopShares(lambda: now[0])

    async def run() -> None:
        await use_all(shares, "greedy")
        now[0] += 8.0
        await shares.use("modest", REQUEST)
        assert await shares.use("greedy", REQUEST) == 0

    asyncio.run(run())


def test_keys_that_somebody_invents_count_for_the_address() -> None:
    shares = LoopShares()
    assert shares.tenant("ck_invented", "192.0.2.1") == "192.0.2.1"
    shares.recognise("ck_real", "owner")
    assert shares.tenant("ck_real", "192.0.2.1") == "owner"


def loop_waits(api: Api) -> float:
    return api.services.metrics.registry.get_sample_value("cointeract_loop_waits_total") or 0.0


def test_a_flood_with_invented_keys_is_delayed_and_probes_are_not(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.loop_shares.MODEST", 5 * REQUEST)
    key = {"Authorization": f"Bearer {create_key(api.store, 'modest').token}"}
    for _ in range(2):  # the first one still counts for the address
        assert api.client.get("/v1/jobs", headers=key).status_code == 200
    before = loop_waits(api)
    for _ in range(100):
        assert api.client.get("/healthz").status_code == 200
    assert loop_waits(api) == before
    for _ in range(40):
        invented = {"Authorization": f"Bearer ck_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"}
        assert api.client.get("/v1/jobs", headers=invented).status_code == 401
    assert loop_waits(api) > before


@pytest.mark.parametrize("is_the_servers", [True, False])
def test_time_that_the_server_makes_a_body_wait_is_not_the_clients(is_the_servers: bool) -> None:
    async def run() -> None:
        async def receive() -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def use(weight: float) -> float:
            await asyncio.sleep(0.5)
            return 0.5 if is_the_servers else 0.0

        bounded = in_time(receive, 0.4, use)
        await bounded()
        if is_the_servers:
            await bounded()
        with pytest.raises(ApiError) as refused:  # twice the time is all that anybody gets
            await bounded()
        assert refused.value.code == "upload_timeout"

    asyncio.run(run())
