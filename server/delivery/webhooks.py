"""Webhooks (Standard Webhooks): the URL that a submit named is told what happens to the job.

The journal is the queue of messages. A cursor for each job says which entry is told next, so a restart loses
nothing. An entry is told at least once, each time with the same `webhook-id`. After a failure it is told
again, at growing intervals, for a day.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from contract.entries import JournalEntry
from contract.frozen import Frozen
from contract.job import utcnow
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.journal import JobNotFound, Journal
from server.errors import printable
from server.fetch import Fetcher, FetchError
from server.hints import Hints
from server.index import JobIndex
from server.views import job_view

log = logging.getLogger(__name__)
TOLD: Final = {
    "started": "job.started",
    "clip_finished": "job.clip_finished",
    "succeeded": "job.succeeded",
    "failed": "job.failed",
    "canceled": "job.canceled",
}
GIVE_UP_AFTER: Final = timedelta(days=1)
LONGEST_PAUSE: Final = timedelta(hours=3)
AT_ONCE: Final = 8
GONE: Final = 410
_FOLDER: Final = "webhooks"
_SECRET: Final = "webhook.secret"
_PREFIX: Final = "whsec_"


class Cursor(Frozen):
    """How much of a job has been told."""

    sequence: int = 1
    """The number of the entry to tell next."""
    tries: int = 0
    first_try_at: datetime | None = None
    next_try_at: datetime | None = None
    over: bool = False


def pause_after(tries: int) -> timedelta:
    """The pause after so many failures: 5 s, 20 s, 80 s … 3 h."""
    return min(LONGEST_PAUSE, timedelta(seconds=5 * 4 ** min(tries - 1, 10)))


def webhook_secret(store: ArtifactStore, configured: str | None) -> str:
    """The configured secret, or one that is made once and kept in storage. Raises ValueError if malformed."""
    if configured is not None:
        _key(configured)
        return configured
    fresh = _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    store.create(_SECRET, fresh.encode())
    kept = store.read(_SECRET)
    assert kept is not None
    return kept.decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a webhook secret is whsec_ and base64") from error
    if not secret.startswith(_PREFIX) or len(key) < 24:
        raise ValueError("a webhook secret is whsec_ and base64 of at least 24 bytes")
    return key


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of the standard. The signature is HMAC-SHA256 of `id.timestamp.body`."""
    signature = hmac.new(_key(secret), f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


@dataclass
class WebhookSender:
    """Sends the webhooks of all jobs. `round` starts what is due, and nothing waits for a slow receiver."""

    store: ArtifactStore
    index: JobIndex
    hints: Hints
    fetcher: Fetcher
    secret: str
    base_url: str = ""
    _cursors: dict[str, Cursor] = field(default_factory=dict)
    _states: dict[str, Job] = field(default_factory=dict)
    """The jobs as they were when last told, so that only newer entries must be read."""
    _telling: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._journal = Journal(self.store)

    async def round(self) -> None:
        """Start to tell what is due."""
        jobs = self.index.with_webhooks()
        for job_id in self._cursors.keys() - jobs.keys():
            del self._cursors[job_id]  # the job was removed
            self._states.pop(job_id, None)
            self.store.remove(f"{_FOLDER}/{job_id}.json")
        now = utcnow()
        for job_id, newest in jobs.items():
            if job_id in self._telling or len(self._telling) >= AT_ONCE:
                continue
            if job_id not in self._cursors:
                self._cursors[job_id] = await asyncio.to_thread(self._load, job_id)
            cursor = self._cursors[job_id]
            if cursor.over or cursor.sequence > newest or (cursor.next_try_at or now) > now:
                continue
            task = asyncio.create_task(self._tell(job_id, cursor))
            self._telling[job_id] = task
            task.add_done_callback(partial(self._told, job_id))

    def _told(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._telling[job_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook of %s could not be sent", job_id, exc_info=error)

    async def stop(self) -> None:
        """Break off what is under way. It is told again after the next start."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _load(self, job_id: str) -> Cursor:
        data = self.store.read(f"{_FOLDER}/{job_id}.json")
        return Cursor() if data is None else Cursor.model_validate_json(data)

    def _save(self, job_id: str, cursor: Cursor) -> None:
        self._cursors[job_id] = cursor
        if cursor.over:
            self._states.pop(job_id, None)
        self.store.write(f"{_FOLDER}/{job_id}.json", cursor.model_dump_json().encode())

    async def _tell(self, job_id: str, cursor: Cursor) -> None:
        """Tell the entries of one job in order, up to the newest or until a failure."""
        try:
            told = await asyncio.to_thread(self._as_told, job_id, cursor)
        except JobNotFound:
            return
        news = self._journal.follow(told)
        while (step := await asyncio.to_thread(next, news, None)) is not None:
            entry, job = step
            delivered = entry.type not in TOLD or await self._deliver(entry, job)
            if delivered:
                cursor = Cursor(sequence=job.sequence + 1, over=job.state.is_terminal)
                self._states[job_id] = job
            else:
                cursor = self._postponed(cursor, delivered)
            await asyncio.to_thread(self._save, job_id, cursor)
            if not delivered:
                return

    def _as_told(self, job_id: str, cursor: Cursor) -> Job:
        """The job as it was before the entry that the cursor names."""
        known = self._states.get(job_id)
        if known is not None and known.sequence == cursor.sequence - 1:
            return known
        return self._journal.as_of(job_id, cursor.sequence - 1)

    def _body(self, entry: JournalEntry, job: Job) -> bytes:
        view = job_view(job, self.hints, self.base_url).model_dump(mode="json")
        message = {"type": TOLD[entry.type], "timestamp": entry.at.isoformat(), "data": view}
        return json.dumps(message).encode()

    async def _deliver(self, entry: JournalEntry, job: Job) -> bool | None:
        """True if the receiver took the message, False to try again, None if it wants no more (410)."""
        job_id, url = job.id, job.submitted.webhook_url or ""
        body = await asyncio.to_thread(self._body, entry, job)
        headers = signed_headers(self.secret, f"msg_{job_id}_{job.sequence}", int(time.time()), body)
        headers["Content-Type"] = "application/json"
        try:
            status = await self.fetcher.post(url, headers, body)
        except FetchError as error:
            log.warning("webhook of %s: %s", job_id, error)
            return False
        if status == GONE:
            return None
        if not 200 <= status < 300:
            log.warning("webhook of %s: %s answered %d", job_id, printable(url, 80), status)
        return 200 <= status < 300

    @staticmethod
    def _postponed(cursor: Cursor, delivered: bool | None) -> Cursor:
        """The cursor after a failure: for a later try, or over."""
        now, tries = utcnow(), cursor.tries + 1
        first = cursor.first_try_at or now
        over = delivered is None or now - first > GIVE_UP_AFTER
        return Cursor(
            sequence=cursor.sequence,
            tries=tries,
            first_try_at=first,
            next_try_at=now + pause_after(tries),
            over=over,
        )
