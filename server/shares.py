"""Capacity that tenants share. No tenant can take all of it, but each may use what others leave idle.

A tenant is an API key or, on a server without keys, a client's address.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

LONG_TURN_S: Final = 0.5
"""A turn that takes longer counts as long, and may not take the last place."""
SLOW_FOR_S: Final = 60.0
"""For how long a tenant counts as slow after a long turn."""

MOST_NOTED: Final = 10_000


class NoPlace(Exception):
    """The tenant holds its share of the places, or all of them are taken."""


class Places:
    """Places that clients hold as long as they like: connections, uploads, event streams.

    A tenant may hold as many as it leaves free. A single tenant thus gets half of them, and a newcomer always
    finds one, however greedy the others are.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: Counter[str] = Counter()
        self._total = 0

    @property
    def held(self) -> int:
        """Places that are taken, by all tenants together."""
        return self._total

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Hold one place. Raises NoPlace."""
        self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)

    def take(self, tenant: str) -> None:
        """Take a place that `give_back` returns. Raises NoPlace."""
        if self._held[tenant] >= self.capacity - self._total:
            raise NoPlace
        self._held[tenant] += 1
        self._total += 1

    def give_back(self, tenant: str) -> None:
        """Return a place that `take` gave."""
        self._total -= 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]


@dataclass(frozen=True)
class _Waiting:
    turn: asyncio.Future[float]
    """Its result is when the turn began."""
    heavy: bool


class Turns:
    """Places for the server's own work, such as parsing and decoding, which waits for its turn.

    The next free place goes to the waiting tenant that holds the fewest. The last free place is kept for
    short work of other tenants. Heavy work never takes it. While others ask for turns too, neither does a
    tenant that already holds a place and has recently had a long turn.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._running: dict[str, list[float]] = {}
        """When each running turn began, by tenant."""
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._seen: OrderedDict[str, float] = OrderedDict()
        """When tenants last asked for a turn, those of long ago first."""
        self._slow: OrderedDict[str, float] = OrderedDict()
        """When tenants had their last long turn, those of long ago first."""

    @asynccontextmanager
    async def turn(self, tenant: str, heavy: bool = False) -> AsyncIterator[None]:
        """Wait for a place and hold it. `heavy`: the work is known to take long."""
        self._note(self._seen, tenant)
        began = await self._begin(tenant, heavy)
        try:
            yield
        finally:
            self._end(tenant, began)

    async def _begin(self, tenant: str, heavy: bool) -> float:
        if tenant not in self._waiting and self._may_begin(tenant, heavy):
            return self._note_beginning(tenant)
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(_Waiting(turn, heavy))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(tenant, turn.result())
            raise

    def _note_beginning(self, tenant: str) -> float:
        began = self._clock()
        self._running.setdefault(tenant, []).append(began)
        return began

    def _note(self, when: OrderedDict[str, float], tenant: str) -> None:
        when[tenant] = self._clock()
        when.move_to_end(tenant)
        if len(when) > MOST_NOTED:
            when.popitem(last=False)

    def _end(self, tenant: str, began: float) -> None:
        if self._clock() - began > LONG_TURN_S:
            self._note(self._slow, tenant)
        self._running[tenant].remove(began)
        if not self._running[tenant]:
            del self._running[tenant]
        while self._let_one_begin():
            pass

    def _may_begin(self, tenant: str, heavy: bool) -> bool:
        busy, own = sum(map(len, self._running.values())), self._running.get(tenant, [])
        if busy >= self._capacity:
            return False
        is_last_place = busy == self._capacity - 1 and self._capacity > 1
        if not is_last_place:
            return True
        return not heavy and not (own and self._has_company(tenant) and self._is_slow(tenant))

    def _has_company(self, tenant: str) -> bool:
        """Whether another tenant has recently asked for a turn. What nobody else wants may be borrowed."""
        others = (asked for other, asked in reversed(self._seen.items()) if other != tenant)
        return self._clock() - next(others, -math.inf) < SLOW_FOR_S

    def _is_slow(self, tenant: str) -> bool:
        if self._clock() - min(self._running[tenant]) > LONG_TURN_S:
            return True
        long_turn = self._slow.get(tenant)
        return long_turn is not None and self._clock() - long_turn < SLOW_FOR_S

    def _let_one_begin(self) -> bool:
        """Begin the turn of the waiting tenant that holds the fewest places; of several, the one that has
        waited longest. False if nobody can begin.
        """
        ready = [tenant for tenant, turns in self._waiting.items() if self._may_begin(tenant, turns[0].heavy)]
        if not ready:
            return False
        tenant = min(ready, key=lambda each: len(self._running.get(each, ())))
        turn = self._waiting[tenant].popleft().turn
        if self._waiting[tenant]:
            self._waiting.move_to_end(tenant)
        else:
            del self._waiting[tenant]
        if not turn.cancelled():
            turn.set_result(self._note_beginning(tenant))
        return True
