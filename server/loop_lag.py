"""How long the event loop was held up: by work that belongs in a thread, or by a machine that is too busy."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from prometheus_client import Histogram

EVERY_S: Final = 0.1


async def measure_lag(lag: Histogram) -> None:
    """Sleep again and again, and note by how much each sleep was too long, until canceled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(EVERY_S)
        lag.observe(max(0.0, time.perf_counter() - began - EVERY_S))
