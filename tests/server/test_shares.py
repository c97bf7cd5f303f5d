"""Shared capacity: nobody takes all of it, and nobody waits behind somebody else's long work."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from server.shares import LONG_TURN_S, SLOW_FOR_S, NoPlace, Places, Turns


def test_a_tenant_holds_as_many_places_as_it_leaves_free_and_newcomers_find_one() -> None:
    places = Places(16)
    with ExitStack() as held:
        counts = {}
        for tenant in ("greedy", "second", "third", "fourth"):
            counts[tenant] = 0
            while True:
                try:
                    held.enter_context(places.place(tenant))
                except NoPlace:
                    break
                counts[tenant] += 1
        assert counts == {"greedy": 8, "second": 4, "third": 2, "fourth": 1}
    assert places.held == 0
    with pytest.raises(NoPlace), places.place("a"), Places(0).place("a"):
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Work:
    """Turns that a test ends when it likes; `order` says in which order they began."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self.order = turns, list[str]()
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, tenant: str, name: str) -> None:
        self._ends[name] = asyncio.Event()

        async def run() -> None:
            async with self._turns.turn(tenant):
                self.order.append(name)
                await self._ends[name].wait()

        self.tasks[name] = asyncio.create_task(run())
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


def test_the_next_turn_goes_to_the_tenant_that_holds_the_fewest() -> None:
    async def run() -> None:
        work = Work(Turns(2, Clock()))
        for number in range(5):
            await work.start("a", f"a{number}")
        await work.start("b", "b0")
        await work.start("c", "c0")
        assert work.order == ["a0", "a1"]
        await work.end("a0")
        assert work.order[2:] == ["b0"]
        await work.end("b0")
        assert work.order[3:] == ["c0"]
        await work.end("a1")
        assert work.order[4:] == ["a2"]
        await work.end("c0")
        assert work.order[5:] == ["a3"]

    asyncio.run(run())


def test_long_work_leaves_one_place_to_others() -> None:
    async def run() -> None:
        clock = Clock()
        work = Work(Turns(2, clock))
        await work.start("quick", "quick0")
        await work.end("quick0")
        await work.start("bomb", "bomb0")
        clock.now += 2 * LONG_TURN_S
        await work.start("bomb", "bomb1")
        await work.start("quick", "quick1")
        assert work.order[1:] == ["bomb0", "quick1"]
        await work.end("quick1")
        assert work.order[1:] == ["bomb0", "quick1"]
        await work.end("bomb0")
        assert work.order[3:] == ["bomb1"]

    asyncio.run(run())


def test_neither_heavy_work_nor_a_slow_tenants_second_takes_the_last_place() -> None:
    async def run() -> None:
        clock = Clock()
        turns = Turns(2, clock)
        work = Work(turns)
        await work.start("quick", "quick0")
        await work.end("quick0")
        await work.start("bomb", "bomb0")
        clock.now += 2 * LONG_TURN_S
        await work.end("bomb0")
        await work.start("bomb", "bomb1")  # quick ones in between make it no quick tenant
        await work.end("bomb1")
        await work.start("bomb", "bomb2")
        await work.start("bomb", "bomb3")
        assert work.order[1:] == ["bomb0", "bomb1", "bomb2"]
        heavy = asyncio.create_task(_hold(turns, "other"))
        await asyncio.sleep(0)
        await work.start("quick", "quick1")
        assert work.order[4:] == ["quick1"]
        await work.end("quick1")
        await work.end("bomb2")
        await work.end("bomb3")
        await heavy
        clock.now += SLOW_FOR_S
        await work.start("bomb", "bomb4")
        await work.start("bomb", "bomb5")
        assert work.order[5:] == ["bomb3", "bomb4", "bomb5"]

    asyncio.run(run())


def test_a_slow_tenant_borrows_all_places_while_nobody_else_asks() -> None:
    async def run() -> None:
        clock = Clock()
        work = Work(Turns(2, clock))
        await work.start("bomb", "bomb0")
        clock.now += 2 * LONG_TURN_S
        await work.start("bomb", "bomb1")
        assert work.order == ["bomb0", "bomb1"]

    asyncio.run(run())


async def _hold(turns: Turns, tenant: str) -> None:
    async with turns.turn(tenant, heavy=True):
        pass


def test_a_turn_that_is_given_up_while_waiting_or_just_won_goes_to_the_next() -> None:
    async def run() -> None:
        work = Work(Turns(1, Clock()))
        await work.start("a", "a0")
        for name in ("b0", "c0", "d0"):
            await work.start(name[0], name)
        work.tasks["b0"].cancel()
        await settle()
        work._ends["a0"].set()
        for _ in range(3):  # until a0 has ended and c0's turn is won, but not begun
            await asyncio.sleep(0)
            if "c0" not in work.order:
                work.tasks["c0"].cancel()
        await settle()
        assert "d0" in work.order
        await work.end("d0")
        await work.start("e", "e0")
        assert work.order[-1] == "e0"

    asyncio.run(run())
