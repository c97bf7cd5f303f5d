"""The event loop as capacity that tenants share: one that has used more than its share waits until the loop
is idle.

One loop serves all requests, and whatever it does for one of them, such as taking another chunk of a body,
keeps all others waiting. Limits on places and turns do not count that, so a tenant that floods the server
would slow everybody down.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

REQUEST: Final = 10.0
"""What a request weighs: some milliseconds of the loop."""
CHUNK: Final = 1.0
"""What a chunk of a body or of an answer weighs: a fraction of a millisecond."""
FORGOTTEN_S: Final = 2.0
"""After so long, what a tenant has used counts 1/e as much."""
MODEST: Final = 20.0 * REQUEST * FORGOTTEN_S
"""What may be used at any time: twenty requests a second."""
COMPANY_S: Final = 10.0
"""A tenant that has asked within so many seconds is there. One that is alone never waits."""
BUSY_S: Final = 0.001
"""A pass of the loop that takes longer had something to do."""
BUSY_SHARE: Final = 0.5
"""A process that has worked for a larger share of the time is busy."""
BREATH_S: Final = 0.002
LONGEST_WAIT_S: Final = 2.0
"""After so long, work goes on even if the loop is busy: a request may be slow, but it ends."""
MOST_RECOGNISED: Final = 10_000


class LoopShares:
    """Counts the work for tenants, and lets those wait that use more than the others. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What each tenant has used, and when that was counted; who was here last comes last."""
        self._total = (0.0, clock())
        self._owners: OrderedDict[str, str] = OrderedDict()
        """The owners of credentials that were found valid."""
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        """The work that waits, and since when."""
        self._keeper: asyncio.Task[None] | None = None

    def recognise(self, credentials: str, owner: str) -> None:
        """Note that `credentials` are those of `owner`, so that its requests count as its own."""
        self._owners[credentials] = owner
        self._owners.move_to_end(credentials)
        if len(self._owners) > MOST_RECOGNISED:
            self._owners.popitem(last=False)

    def tenant(self, credentials: str, address: str) -> str:
        """Who a request counts for: the owner of a known key or, as anybody can invent keys, an address."""
        return self._owners.get(credentials, address)

    async def use(self, tenant: str, weight: float) -> float:
        """Count work for `tenant` that is about to be done. If it has used more than its share, wait until
        the loop is idle.

        Returns for how many seconds it waited.
        """
        self._count(tenant, weight)
        if not self._is_greedy(tenant):
            return 0.0
        began = self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, began))
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._let_pass())
        await turn
        return self._clock() - began

    def _count(self, tenant: str, weight: float) -> None:
        now = self._clock()
        self._used[tenant] = (_faded(self._used.get(tenant, (0.0, now)), now) + weight, now)
        self._used.move_to_end(tenant)
        self._total = (_faded(self._total, now) + weight, now)
        while now - next(iter(self._used.values()))[1] > COMPANY_S:
            self._used.popitem(last=False)

    def _is_greedy(self, tenant: str) -> bool:
        if len(self._used) == 1:
            return False
        share = self._total[0] / len(self._used)
        return self._used[tenant][0] > max(MODEST, share)

    async def _let_pass(self) -> None:
        """Let those who wait go on, one at a time, whenever the process has little else to do."""
        passed, worked = self._clock(), time.process_time()
        while self._waiting:
            began = self._clock()
            await asyncio.sleep(0)
            now = self._clock()
            turn, since = self._waiting[0]
            is_busy = now - began > BUSY_S or time.process_time() - worked > BUSY_SHARE * (now - passed)
            if is_busy and now - since < LONGEST_WAIT_S:
                await asyncio.sleep(BREATH_S)
                continue
            passed, worked = now, time.process_time()
            self._waiting.popleft()
            if not turn.done():  # its client may be gone
                turn.set_result(None)


def _faded(counted: tuple[float, float], now: float) -> float:
    """What was counted at some time, as it counts `now`."""
    amount, at = counted
    return amount * math.exp((at - now) / FORGOTTEN_S)
