"""Webhooks (Standard Webhooks): messages about a job to the URL that its submit named.

The journal is the queue of messages. Each job has a cursor that says which entry is sent next, so a restart
loses nothing. Each entry has its own tries. One that fails does not hold up the next, and is sent again at
growing intervals for a day, with the same `webhook-id` and body. Several API processes may share the work: a
claim in Redis lets one of them at a time send the messages of a job. While Redis is away an entry may be sent
twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from contract.choices import WebhookEvent
from contract.entries import JournalEntry
from contract.frozen import Frozen
from contract.job import JOB_ID, utcnow
from contract.state import Job
from jobs.artifacts import ArtifactStore, NoFileOfOurs
from jobs.journal import JobNotFound, Journal
from jobs.record_kinds import RecordKind
from server.delivery.delivery_log import Try, note_try
from server.delivery.signing_secrets import SigningSecrets
from server.delivery.standard_webhooks import signed_headers
from server.errors import ApiError, printable
from server.fetch import Fetcher, FetchError
from server.hints import Hints
from server.index import JobIndex
from server.metrics import Metrics
from server.shares import NoPlace, Places
from server.views import job_view

log = logging.getLogger(__name__)
TOLD: Final = {event.removeprefix("job."): event for event in WebhookEvent}
"""The events that have messages, by the type of their journal entry."""
GIVE_UP_AFTER: Final = timedelta(days=1)
LONGEST_PAUSE: Final = timedelta(hours=3)
AT_ONCE: Final = 32
"""How many jobs have messages sent at once. A tenant may hold as many of these places as it leaves free."""
AT_ONCE_PER_HOST: Final = 4
"""How many of these may go to one host, so that a host that never answers holds no more."""
CLAIM_S: Final = 90.0
"""How long a claim holds. It is renewed before each message, which takes less."""
GONE: Final = 410
_FOLDER: Final = "webhooks"
_FAREWELLS: Final = "farewells"


class Tries(Frozen):
    """The failed tries of a message."""

    count: int = 0
    first_at: datetime
    next_at: datetime


class Cursor(Frozen):
    """How much of a job's journal has been sent."""

    sequence: int = 1
    """The number of the entry to send next."""
    failed: Mapping[int, Tries] = {}
    """Earlier entries that must be sent again."""
    over: bool = False


class Farewell(Frozen):
    """The last message of a job that was deleted before the message was sent."""

    owner: str
    url: str
    message_id: str
    body: str
    tries: Tries


_NAME: Final = re.compile(rf"{JOB_ID.pattern}\.json")
WEBHOOK_RECORDS: Final = (
    RecordKind(_FOLDER, _NAME, lambda name, data: Cursor.stored(data)),
    RecordKind(_FAREWELLS, _NAME, lambda name, data: Farewell.stored(data)),
)


def pause_after(tries: int) -> timedelta:
    """The pause after so many failures: 5 s, 20 s, 80 s … 3 h."""
    return min(LONGEST_PAUSE, timedelta(seconds=5 * 4 ** min(tries - 1, 10)))


def after_failure(tries: Tries | None) -> Tries | None:
    """The tries after one more failure; None if that was the last try."""
    now, count = utcnow(), 1 if tries is None else tries.count + 1
    first = now if tries is None else tries.first_at
    if now - first > GIVE_UP_AFTER:
        return None
    return Tries(count=count, first_at=first, next_at=now + pause_after(count))


@dataclass
class WebhookSender:
    """Sends the webhooks of all jobs. `round` starts what is due, and nothing waits for a slow receiver."""

    store: ArtifactStore
    index: JobIndex
    hints: Hints
    fetcher: Fetcher
    secrets: SigningSecrets
    base_url: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    _cursors: dict[str, Cursor] = field(default_factory=dict)
    _states: dict[str, Job] = field(default_factory=dict)
    """The jobs as of their last message, so that only newer entries must be read."""
    _telling: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _places: Places = field(default_factory=lambda: Places(AT_ONCE))
    _hosts: Counter[str] = field(default_factory=Counter)
    """How many jobs have messages under way, by host."""

    def __post_init__(self) -> None:
        self._journal = Journal(self.store)

    async def round(self) -> None:
        """Start to send what is due."""
        jobs = self.index.with_webhooks()
        for job_id in self._cursors.keys() - jobs.keys():
            if await asyncio.to_thread(self._journal.is_stored, job_id):
                continue  # it cannot be read at the moment, and goes on from here when it can
            del self._cursors[job_id]
            self._states.pop(job_id, None)
            await asyncio.to_thread(self.store.remove, _cursor_key(job_id))
        now = utcnow()
        for job_id, job in jobs.items():
            if job_id not in self._cursors:
                try:
                    self._cursors[job_id] = await asyncio.to_thread(self._load, job_id)
                except OSError as error:  # of this cursor alone
                    self.store.passed_over.note("cursor", job_id, error)
                    continue
            if _is_due(self._cursors[job_id], job.sequence, now):
                self._start(job_id, job.owner, job.webhook_host, partial(self._tell, job_id))
        for name in await asyncio.to_thread(self.store.list_names, _FAREWELLS):
            farewell = await asyncio.to_thread(self._farewell, name)
            if farewell is not None and farewell.tries.next_at <= now:
                host = urlsplit(farewell.url).netloc
                self._start(name, farewell.owner, host, partial(self._take_leave, name, farewell))

    def _start(self, key: str, owner: str, host: str, tell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Send in the background, unless that is under way or the share of the owner or host is used up."""
        if key in self._telling or self._hosts[host] >= AT_ONCE_PER_HOST:
            return
        try:
            self._places.take(owner)
        except NoPlace:
            return
        self._hosts[host] += 1
        self._telling[key] = task = asyncio.create_task(tell())
        task.add_done_callback(partial(self._ended, key, owner, host))

    def _ended(self, key: str, owner: str, host: str, task: asyncio.Task[None]) -> None:
        del self._telling[key]
        self._places.give_back(owner)
        self._hosts[host] -= 1
        self._hosts += Counter()  # drops the zeros
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook of %s could not be sent", key, exc_info=error)

    async def stop(self) -> None:
        """Stop what is under way. It is sent again after the next start."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Jobs

    async def _tell(self, job_id: str) -> None:
        """Send the due entries of one job: first those that failed before, then the new ones."""
        claim = f"webhook {job_id}"
        if not await asyncio.to_thread(self.hints.claim, claim, CLAIM_S):
            return  # another process tells it
        try:
            # Another process may have told something since this one looked.
            cursor = await asyncio.to_thread(self._load, job_id)
            told = self._states[job_id] = await asyncio.to_thread(self._as_told, job_id, cursor)
            for sequence, tries in cursor.failed.items():
                if tries.next_at <= utcnow():
                    entry, job = await asyncio.to_thread(self._entry, job_id, sequence)
                    cursor = await self._told(job_id, cursor, entry, job)
            news = self._journal.follow(told)
            while not cursor.over and (step := await asyncio.to_thread(next, news, None)) is not None:
                cursor = await self._told(job_id, cursor, *step)
        except JobNotFound:
            return
        finally:
            await asyncio.to_thread(self.hints.release, claim)

    async def _told(self, job_id: str, cursor: Cursor, entry: JournalEntry, job: Job) -> Cursor:
        """The cursor after one more try to send an entry. `job` is the job as of that entry."""
        failed, sequence = dict(cursor.failed), job.sequence
        tries = failed.pop(sequence, None)
        delivered: bool | None = True
        if event_of(entry, job) is not None:
            await asyncio.to_thread(self.hints.claim, f"webhook {job_id}", CLAIM_S)
            delivered = await self._deliver(job, entry)
        if delivered is False:
            if (again := after_failure(tries)) is not None:
                failed[sequence] = again
            else:
                self.metrics.webhooks.labels("given_up").inc()
        newest = max(cursor.sequence, sequence + 1)
        if newest > cursor.sequence:
            self._states[job_id] = job
        state = self._states.get(job_id, job).state
        over = delivered is None or (state.is_terminal and not failed)
        after = Cursor(sequence=newest, failed=failed, over=over)
        await asyncio.to_thread(self._save, job_id, after)
        return after

    def _load(self, job_id: str) -> Cursor:
        try:
            data = self.store.read(_cursor_key(job_id))
            return Cursor() if data is None else Cursor.stored(data)
        except (ValueError, NoFileOfOurs) as error:  # told again from the start, under the same ids
            self.store.passed_over.note("cursor", job_id, error)
            return Cursor()

    def _save(self, job_id: str, cursor: Cursor) -> None:
        self._cursors[job_id] = cursor
        if cursor.over:
            self._states.pop(job_id, None)
        self.store.write(_cursor_key(job_id), cursor.model_dump_json().encode())

    def _entry(self, job_id: str, sequence: int) -> tuple[JournalEntry, Job]:
        """An entry, and the job as of that entry."""
        return next(self._journal.follow(self._journal.as_of(job_id, sequence - 1)))

    def _as_told(self, job_id: str, cursor: Cursor) -> Job:
        """The job as it was before the entry that the cursor names."""
        known = self._states.get(job_id)
        if known is not None and known.sequence == cursor.sequence - 1:
            return known
        return self._journal.as_of(job_id, cursor.sequence - 1)

    # Deleted jobs

    def say_farewell(self, job: Job) -> None:
        """Keep the last message of a job that is about to be deleted, if it has not been sent yet.

        `job` is over, because a job is canceled before it is deleted.
        """
        url, event = job.submitted.webhook_url, WebhookEvent(f"job.{job.state.value}")
        if url is None or not wants(job, event) or self._load(job.id).over or job.completed_at is None:
            return
        farewell = Farewell(
            owner=job.submitted.owner,
            url=url,
            message_id=message_id(job.id, job.sequence),
            body=self._body(event, job.completed_at, job),
            tries=Tries(first_at=utcnow(), next_at=utcnow()),
        )
        self.store.write(f"{_FAREWELLS}/{job.id}.json", farewell.model_dump_json().encode())

    def _farewell(self, name: str) -> Farewell | None:
        try:
            data = self.store.read(f"{_FAREWELLS}/{name}")
            return None if data is None else Farewell.stored(data)
        except (ValueError, OSError) as error:
            self.store.passed_over.note("cursor", name, error)
            return None

    async def _take_leave(self, name: str, farewell: Farewell) -> None:
        claim = f"webhook {name}"
        if not await asyncio.to_thread(self.hints.claim, claim, CLAIM_S):
            return
        try:
            if await asyncio.to_thread(self._farewell, name) != farewell:
                return  # another process has just tried
            made = await self._post(farewell.url, farewell.owner, farewell.message_id, farewell.body)
            again = after_failure(farewell.tries) if outcome_of(made) is False else None
            if again is None:
                await asyncio.to_thread(self.store.remove, f"{_FAREWELLS}/{name}")
            else:
                data = farewell.model_copy(update={"tries": again}).model_dump_json().encode()
                await asyncio.to_thread(self.store.write, f"{_FAREWELLS}/{name}", data)
        finally:
            await asyncio.to_thread(self.hints.release, claim)

    # Messages

    def _body(self, event: str, at: datetime, job: Job) -> str:
        """The message. Only what the journal says is in it, so that each try has the same bytes."""
        view = job_view(job, None, self.base_url).model_dump(mode="json")
        return json.dumps({"type": event, "timestamp": at.isoformat(), "data": view})

    async def _deliver(self, job: Job, entry: JournalEntry) -> bool | None:
        request = job.submitted
        body = await asyncio.to_thread(self._body, TOLD[entry.type], entry.at, job)
        made = await self._post(
            request.webhook_url or "", request.owner, message_id(job.id, job.sequence), body
        )
        await asyncio.to_thread(note_try, self.store, job, made)
        return outcome_of(made)

    async def _post(self, url: str, owner: str, message: str, body: str) -> Try:
        """Post a message, once. Raises OSError, ValueError if the owner's secret cannot be read."""
        data, at, began = body.encode(), utcnow(), time.monotonic()
        secrets = await asyncio.to_thread(self.secrets.signing, owner)
        headers = signed_headers(secrets, message, int(time.time()), data)
        headers["Content-Type"] = "application/json"
        status, error = None, None
        try:
            status = await self.fetcher.post(url, headers, data)
        except FetchError as why:
            error = why.detail
        made = Try(at=at, seconds=round(time.monotonic() - began, 3), status=status, error=error)
        self.metrics.webhook_seconds.observe(made.seconds)
        outcome = "arrived" if made.arrived else "gone" if status == GONE else "failed"
        self.metrics.webhooks.labels(outcome).inc()
        if outcome == "failed":
            log.warning("webhook %s: %s: %s", message, printable(url, 80), error or f"answered {status}")
        return made

    # Told again

    def tell_again(self, job: Job, sequence: int) -> None:
        """Let the next round send the message about an entry again.

        Raises OSError, or ApiError (503) while another process sends the job's messages.
        """
        claim = f"webhook {job.id}"
        if job.id in self._telling or not self.hints.claim(claim, CLAIM_S):
            raise ApiError("busy", "Webhooks of this job are being sent; try again.", retry_after_s=2)
        try:
            cursor, now = self._load(job.id), utcnow()
            failed = {**cursor.failed, sequence: Tries(first_at=now, next_at=now)}
            self._save(job.id, cursor.model_copy(update={"failed": failed, "over": False}))
        finally:
            self.hints.release(claim)

    def cursor_of(self, job_id: str) -> Cursor:
        """How much of a job's journal has been sent. Raises OSError."""
        return self._load(job_id)


def _is_due(cursor: Cursor, newest: int, now: datetime) -> bool:
    if cursor.over:
        return False
    return cursor.sequence <= newest or any(tries.next_at <= now for tries in cursor.failed.values())


def wants(job: Job, event: WebhookEvent) -> bool:
    """Whether a job's webhook gets messages about an event."""
    chosen = job.submitted.webhook_events
    return job.submitted.webhook_url is not None and (chosen is None or event in chosen)


def event_of(entry: JournalEntry, job: Job) -> WebhookEvent | None:
    """The event that the job's webhook is sent for an entry; None if it is sent nothing."""
    event = TOLD.get(entry.type)
    return event if event is not None and wants(job, event) else None


def outcome_of(made: Try) -> bool | None:
    """True if the receiver took the message, False to try again, None if it wants no more (410)."""
    return None if made.status == GONE else made.arrived


def _cursor_key(job_id: str) -> str:
    return f"{_FOLDER}/{job_id}.json"


def message_id(job_id: str, sequence: int) -> str:
    """The `webhook-id` of the message about an entry."""
    return f"msg_{job_id}_{sequence}"
