"""Webhooks, received over TLS and verified with the library of the standard."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook

from contract.job import utcnow
from contract.video import CLIP_FRAMES, FPS
from server.delivery.webhooks import GIVE_UP_AFTER, Cursor, WebhookSender, pause_after, webhook_secret
from server.fetch import Fetcher
from tests.server.conftest import Api
from tests.server.inputs import audio_bytes, form
from tests.server.journals import fail, finish_clip, start, succeed

HOST = "hooks.example"


@dataclass
class Receiver:
    """What a receiver got, and what it answers."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """Answers in turn; 204 when there are no more."""
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@asynccontextmanager
async def receiving(authority: trustme.CA, receiver: Receiver) -> AsyncIterator[Receiver]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        receiver.messages.append((headers, body))
        status = receiver.statuses.pop(0) if receiver.statuses else 204
        writer.write(b"HTTP/1.1 %d X\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver


def sender_of(api: Api, authority: trustme.CA, policy: Callable[[str], bool]) -> WebhookSender:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    secret = webhook_secret(api.store, None)
    fetcher = Fetcher(5.0, resolver, policy, trusting)
    return WebhookSender(api.store, api.services.index, api.services.hints, fetcher, secret)


async def rounds(sender: WebhookSender, count: int = 1) -> None:
    for _ in range(count):
        sender.index.refresh()
        await sender.round()
        await asyncio.gather(*sender._telling.values())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _only_the_senders_of_the_tests_send(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        return

    monkeypatch.setattr(api.services.webhooks, "round", nothing)


def submit(api: Api) -> str:
    """A job whose webhook nobody but this test's sender can reach."""
    answer = api.client.post("/v1/generate", files=form(webhook_url=f"https://{HOST}.invalid:1/hook"))
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def run(
    api: Api,
    authority: trustme.CA,
    story: Callable[[WebhookSender, Receiver], Any],
    policy: Callable[[str], bool] = lambda address: True,
    statuses: Sequence[int] = (),
) -> Receiver:
    """Play a story with a sender whose messages all go to one receiver."""
    receiver = Receiver(statuses=list(statuses))

    async def play() -> None:
        async with receiving(authority, receiver):
            sender = sender_of(api, authority, policy)
            post = sender.fetcher.post

            async def to_receiver(url: str, headers: Any, body: bytes) -> int:
                return await post(f"https://{HOST}:{receiver.port}/hook", headers, body)

            object.__setattr__(sender.fetcher, "post", to_receiver)
            await story(sender, receiver)

    asyncio.run(play())
    return receiver


def test_every_event_arrives_in_order_and_verifies_with_the_standards_library(
    api: Api, authority: trustme.CA
) -> None:
    job_id = submit(api)
    succeed(api, job_id)

    async def story(sender: WebhookSender, _: Receiver) -> None:
        await rounds(sender, 3)

    receiver = run(api, authority, story)
    verifier = Webhook(webhook_secret(api.store, None))
    events = [verifier.verify(body, headers) for headers, body in receiver.messages]
    assert [event["type"] for event in events] == ["job.started", "job.clip_finished", "job.succeeded"]
    assert [event["data"]["status"] for event in events] == ["processing", "processing", "succeeded"]
    assert {event["data"]["id"] for event in events} == {job_id}
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 3


def test_a_failed_delivery_is_repeated_with_the_same_id_after_a_pause(
    api: Api, authority: trustme.CA
) -> None:
    job_id = submit(api)
    fail(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender, 2)
        assert len(receiver.messages) == 1, "the second round came before the pause was over"
        for told in (2, 4):  # the redirect is a failure, too; then both events go out
            sender._save(job_id, sender._cursors[job_id].model_copy(update={"next_try_at": utcnow()}))
            await rounds(sender)
            assert len(receiver.messages) == told

    receiver = run(api, authority, story, statuses=[500, 302])
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_410_ends_it_and_so_does_a_day_of_failures(api: Api, authority: trustme.CA) -> None:
    gone, silent = submit(api), submit(api)
    fail(api, gone)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender, 3)
        assert sender._cursors[gone].over
        assert len(receiver.messages) == 1
        start(api, silent)
        old = Cursor(tries=9, first_try_at=utcnow() - GIVE_UP_AFTER - timedelta(seconds=1))
        sender._save(silent, old)
        receiver.statuses.append(500)
        await rounds(sender, 2)
        assert sender._cursors[silent].over
        assert len(receiver.messages) == 2

    run(api, authority, story, statuses=[410])


def test_a_restart_tells_nothing_twice_and_forgets_nothing(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender)
        restarted = WebhookSender(sender.store, sender.index, sender.hints, sender.fetcher, sender.secret)
        await rounds(restarted)
        assert len(receiver.messages) == 1
        api.client.post(f"/v1/jobs/{job_id}/cancel")
        await rounds(restarted)
        assert json.loads(receiver.messages[-1][1])["type"] == "job.canceled"
        assert len(receiver.messages) == 2

    run(api, authority, story)


@pytest.mark.parametrize("at_once", [True, False])
def test_telling_a_long_job_reads_each_entry_about_once(
    api: Api, authority: trustme.CA, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = 20
    speech = ("speech.wav", audio_bytes(seconds=clips * CLIP_FRAMES / FPS), "audio/wav")
    answer = api.client.post("/v1/generate", files=form(audio=speech, webhook_url=f"https://{HOST}/hook"))
    job_id = answer.json()["id"]
    assert answer.json()["num_clips"] == clips
    reads: list[str] = []
    read = api.store.read

    def counted(key: str) -> bytes | None:
        reads.append(key)
        return read(key)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        start(api, job_id)
        for clip in range(clips):
            finish_clip(api, job_id, clip)
            if not at_once:
                await tell(sender)
        await tell(sender)
        assert len(receiver.messages) == clips + 1

    async def tell(sender: WebhookSender) -> None:
        sender.index.refresh()
        monkeypatch.setattr(api.store, "read", counted)
        await sender.round()
        await asyncio.gather(*sender._telling.values())
        monkeypatch.setattr(api.store, "read", read)

    run(api, authority, story)
    of_the_journal = [key for key in reads if "/journal/" in key]
    assert len(of_the_journal) <= 3 * clips, "telling entry n must not read the n entries before it"


def test_a_private_address_is_never_called(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender)
        assert receiver.messages == []
        assert sender._cursors[job_id].tries == 1

    run(api, authority, story, policy=lambda address: False)


def test_a_deleted_job_is_told_no_more_and_leaves_no_cursor(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, _: Receiver) -> None:
        await rounds(sender)
        assert api.store.list_names("webhooks") == [f"{job_id}.json"]
        api.client.delete(f"/v1/jobs/{job_id}")
        await rounds(sender)
        assert api.store.list_names("webhooks") == []

    run(api, authority, story)


def test_pauses_grow_up_to_three_hours() -> None:
    assert [pause_after(tries).total_seconds() for tries in (1, 2, 3, 50)] == [5, 20, 80, 10_800]


def test_the_secret_is_made_once_and_a_malformed_one_is_refused(api: Api) -> None:
    assert webhook_secret(api.store, None) == webhook_secret(api.store, None)
    assert webhook_secret(api.store, "whsec_" + "A" * 32) == "whsec_" + "A" * 32
    for malformed in ("whsec_short", "A" * 40, "whsec_!!"):
        with pytest.raises(ValueError, match="whsec_"):
            webhook_secret(api.store, malformed)
