"""The services that routes use. An application makes them once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from contract.settings import Settings
from jobs.artifacts import ArtifactStore
from jobs.clock import Clock
from jobs.journal import Journal
from jobs.traces import Traces
from server.decoding.sandbox import Sandbox
from server.delivery.signing import UrlSigner
from server.delivery.webhooks import WebhookSender
from server.fetch import Fetcher
from server.hints import Hints
from server.idempotency import IdempotencyKeys
from server.index import JobIndex
from server.keyed_locks import KeyedLocks
from server.loop_shares import LoopShares
from server.metrics import Metrics
from server.remembered import RememberedJobs
from server.shares import Places, Turns
from server.storage_probe import StorageProbe

Result = TypeVar("Result")

DISK_TURNS: Final = 16
"""How many threads may write for submits at once: half of those that may wait for the disk."""


@dataclass
class Services:
    settings: Settings
    store: ArtifactStore
    journal: Journal
    hints: Hints
    index: JobIndex
    sandbox: Sandbox
    fetcher: Fetcher
    idempotency: IdempotencyKeys
    signer: UrlSigner
    metrics: Metrics
    webhooks: WebhookSender
    clock: Clock
    storage: StorageProbe
    loop_shares: LoopShares = field(default_factory=LoopShares)
    traces: Traces = field(default_factory=Traces)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the application stops. Open streams then end."""
    parsing: Turns = field(default_factory=lambda: Turns(2))
    """JSON bodies hold whole files in memory, so only so many are read at the same time."""
    listing: Turns = field(default_factory=lambda: Turns(2))
    """Lists of kept files read a thousand of them. Many at once would take all threads and the processor."""
    disk: Turns = field(default_factory=lambda: Turns(DISK_TURNS))
    speaking: Turns = field(default_factory=lambda: Turns(4))
    """How many texts the speech server is asked for at once."""
    remembered: RememberedJobs = field(init=False)
    storing: KeyedLocks = field(default_factory=KeyedLocks)
    """Submits of a key with limits are stored one after the other."""
    uploads: Places = field(init=False)
    streams: Places = field(init=False)

    def __post_init__(self) -> None:
        self.remembered = RememberedJobs(self.journal)
        self.uploads = Places(self.settings.max_concurrent_uploads)
        self.streams = Places(self.settings.max_event_streams)

    async def look(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run `work`, which looks at a small file or two in the store. Returns its result.

        On a disk that costs less than handing it to a thread does. A remote store is asked in a thread.
        """
        if self.store.is_remote:
            return await asyncio.to_thread(work, *arguments)
        return work(*arguments)
