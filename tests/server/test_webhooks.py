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
from server.delivery.signing_secrets import SigningSecrets
from server.delivery.standard_webhooks import webhook_secret
from server.delivery.webhooks import (
    AT_ONCE_PER_HOST,
    GIVE_UP_AFTER,
    Cursor,
    Tries,
    WebhookSender,
    pause_after,
)
from server.fetch import Fetcher
from server.hints import Hints
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

    secrets = SigningSecrets(api.store, webhook_secret(api.store, None))
    fetcher = Fetcher(5.0, resolver, policy, trusting)
    return WebhookSender(api.store, api.services.index, api.services.hints, fetcher, secrets)


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


def submit(api: Api, host: str = HOST) -> str:
    """A job whose webhook nobody but this test's sender can reach."""
    answer = api.client.post("/v1/generate", files=form(webhook_url=f"https://{host}.invalid:1/hook"))
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


def retry_now(sender: WebhookSender, job_id: str) -> None:
    """Let the pauses of a job be over."""
    cursor = sender._load(job_id)
    failed = {
        number: tries.model_copy(update={"next_at": utcnow()}) for number, tries in cursor.failed.items()
    }
    sender._save(job_id, cursor.model_copy(update={"failed": failed}))


def test_a_failed_delivery_is_repeated_with_the_same_id_and_body_after_a_pause(
    api: Api, authority: trustme.CA
) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender, 2)
        assert len(receiver.messages) == 1, "the second round came before the pause was over"
        succeed(api, job_id, started=True)
        for told in (4, 5):  # the redirect is a failure, too, and holds up nothing
            retry_now(sender, job_id)
            await rounds(sender)
            assert len(receiver.messages) == told
        assert sender._cursors[job_id].over

    receiver = run(api, authority, story, statuses=[500, 302])
    types = [json.loads(body)["type"] for _, body in receiver.messages]
    assert types == ["job.started", "job.started", "job.clip_finished", "job.succeeded", "job.started"]
    tries = [receiver.messages[number] for number in (0, 1, 4)]
    assert len({headers["webhook-id"] for headers, _ in tries}) == 1
    assert len({body for _, body in tries}) == 1, "a repeated message has the same bytes"


def test_410_ends_it_and_so_does_a_day_of_failures(api: Api, authority: trustme.CA) -> None:
    gone, silent = submit(api), submit(api)
    fail(api, gone)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender, 3)
        assert sender._cursors[gone].over
        assert len(receiver.messages) == 1
        fail(api, silent)
        old = Tries(count=9, first_at=utcnow() - GIVE_UP_AFTER - timedelta(seconds=1), next_at=utcnow())
        sender._save(silent, Cursor(sequence=3, failed={1: old, 2: old}))
        receiver.statuses += [500, 500]
        await rounds(sender, 2)
        assert sender._cursors[silent].over
        assert len(receiver.messages) == 3
        counted = {
            labels["outcome"]: int(sample.value)
            for family in sender.metrics.webhooks.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and (labels := sample.labels)
        }
        assert counted == {"arrived": 0, "failed": 2, "gone": 1, "given_up": 2}

    run(api, authority, story, statuses=[410])


def test_several_api_processes_tell_each_event_once(api: Api, authority: trustme.CA) -> None:
    job_ids = [submit(api) for _ in range(5)]
    for job_id in job_ids:
        succeed(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        others = [
            WebhookSender(
                sender.store, sender.index, Hints(sender.hints._queue), sender.fetcher, sender.secrets
            )
            for _ in range(3)
        ]
        for _ in range(4):
            await asyncio.gather(*(rounds(each) for each in [sender, *others]))
        assert len(receiver.messages) == 3 * len(job_ids)

    receiver = run(api, authority, story)
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert len(set(ids)) == len(ids)


def test_silent_receivers_hold_up_nobody_else(api: Api, authority: trustme.CA) -> None:
    """Forty jobs of one tenant go to a black hole; another's message arrives in the first round."""
    silent = [submit(api) for _ in range(40)]
    for job_id in silent:
        start(api, job_id)
    heard = submit(api, host="other.example")
    start(api, heard)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        post = sender.fetcher.post

        async def black_hole(url: str, headers: Any, body: bytes) -> int:
            if "other.example" not in url:
                await asyncio.sleep(3600)
            return await post(url, headers, body)

        object.__setattr__(sender.fetcher, "post", black_hole)
        sender.index.refresh()
        await sender.round()
        told = sender._telling.get(heard)  # None: it is through already
        assert len(sender._telling) == AT_ONCE_PER_HOST + (told is not None)
        if told is not None:
            await told
        assert len(receiver.messages) == 1
        await sender.stop()
        assert sender._hosts.total() == sender._places.held == 0

    run(api, authority, story)


def test_a_restart_tells_nothing_twice_and_forgets_nothing(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender)
        restarted = WebhookSender(sender.store, sender.index, sender.hints, sender.fetcher, sender.secrets)
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
        assert sender._cursors[job_id].failed[1].count == 1

    run(api, authority, story, policy=lambda address: False)


def test_a_deleted_job_says_how_it_ended_and_leaves_nothing(api: Api, authority: trustme.CA) -> None:
    job_id, told = submit(api), submit(api)
    start(api, job_id)
    fail(api, told)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender)
        assert api.store.list_names("webhooks") == sorted([f"{job_id}.json", f"{told}.json"])
        before = len(receiver.messages)
        receiver.statuses.append(500)
        for each in (job_id, told):
            assert api.client.delete(f"/v1/jobs/{each}").status_code == 200
        await rounds(sender)
        (name,) = api.store.list_names("farewells")
        farewell = sender._farewell(name)
        assert farewell is not None
        due = farewell.model_copy(update={"tries": farewell.tries.model_copy(update={"next_at": utcnow()})})
        api.store.write(f"farewells/{name}", due.model_dump_json().encode())
        await rounds(sender, 2)
        assert api.store.list_names("webhooks") == api.store.list_names("farewells") == []
        assert len(receiver.messages) == before + 2

    receiver = run(api, authority, story)
    event = Webhook(webhook_secret(api.store, None)).verify(
        receiver.messages[-1][1], receiver.messages[-1][0]
    )
    assert (event["type"], event["data"]["id"], event["data"]["status"]) == (
        "job.canceled",
        job_id,
        "canceled",
    )
    assert receiver.messages[-1][1] == receiver.messages[-2][1]


def test_pauses_grow_up_to_three_hours() -> None:
    assert [pause_after(tries).total_seconds() for tries in (1, 2, 3, 50)] == [5, 20, 80, 10_800]


def test_the_secret_is_made_once_and_a_malformed_one_is_refused(api: Api) -> None:
    assert webhook_secret(api.store, None) == webhook_secret(api.store, None)
    assert webhook_secret(api.store, "whsec_" + "A" * 32) == "whsec_" + "A" * 32
    for malformed in ("whsec_short", "A" * 40, "whsec_!!"):
        with pytest.raises(ValueError, match="whsec_"):
            webhook_secret(api.store, malformed)
