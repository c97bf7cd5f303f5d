"""Webhooks that are chosen, looked at, sent again, and signed with a key's own secret."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from contract.job import utcnow
from server.delivery import signing_secrets
from server.delivery.delivery_log import MOST_TRIES_KEPT, Try, note_try, read_log
from server.delivery.standard_webhooks import webhook_secret
from server.delivery.webhooks import WebhookSender
from server.keys import NewKey, create_key
from server.routes.webhooks import MOST_TRIES
from tests.server.conftest import Api
from tests.server.inputs import form
from tests.server.journals import fail, start, succeed
from tests.server.test_webhooks import Receiver, retry_now, rounds, run

HOOK = "https://hooks.example.invalid:1/hook"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _only_the_senders_of_the_tests_send(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        return

    monkeypatch.setattr(api.services.webhooks, "round", nothing)


def submit(api: Api, key: NewKey | None = None, **fields: Any) -> str:
    headers = {"Authorization": f"Bearer {key.token}"} if key else {}
    answer = api.client.post("/v1/generate", files=form(webhook_url=HOOK, **fields), headers=headers)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def deliveries(api: Api, job_id: str) -> list[dict[str, Any]]:
    answer = api.client.get(f"/v1/jobs/{job_id}/deliveries")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def types(receiver: Receiver) -> list[str]:
    return [json.loads(body)["type"] for _, body in receiver.messages]


def test_a_webhook_is_told_only_what_it_asked_for(api: Api, authority: trustme.CA) -> None:
    chosen = submit(api, webhook_events=["job.succeeded", "job.failed"])
    as_json = api.client.post(
        "/v1/generate",
        json={
            "prompt": "x",
            "webhook_url": HOOK,
            "webhook_events": ["job.started"],
            **{name: _data_url(value) for name, value in form() if name in ("person_image", "audio")},
        },
    ).json()["id"]
    for job_id in (chosen, as_json):
        succeed(api, job_id)

    async def story(sender: WebhookSender, _: Receiver) -> None:
        await rounds(sender, 3)
        assert sender._cursors[chosen].over
        assert sender._cursors[as_json].over

    receiver = run(api, authority, story)
    assert sorted(types(receiver)) == ["job.started", "job.succeeded"]
    assert [each["event"] for each in deliveries(api, chosen)] == ["job.succeeded"]


def _data_url(part: Any) -> str:
    import base64

    return f"data:{part[2]};base64,{base64.b64encode(part[1]).decode()}"


def test_a_deleted_job_says_farewell_only_to_who_asked_for_it(api: Api, authority: trustme.CA) -> None:
    silent, told = submit(api, webhook_events=["job.started"]), submit(api, webhook_events=["job.canceled"])

    async def story(sender: WebhookSender, _: Receiver) -> None:
        for job_id in (silent, told):
            api.client.delete(f"/v1/jobs/{job_id}")
        await rounds(sender, 2)

    receiver = run(api, authority, story)
    assert types(receiver) == ["job.canceled"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"webhook_url": HOOK, "webhook_events": "job.done"}, "webhook_events.0"),
        ({"webhook_url": None, "webhook_events": "job.failed"}, "webhook_url"),
        ({"webhook_url": HOOK, "webhook_events": ["job.failed"] * 17}, "webhook_events"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(api: Api, fields: dict[str, Any], field: str) -> None:
    answer = api.client.post("/v1/generate", files=form(**fields))
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_each_try_is_told_and_a_message_can_be_sent_again_with_the_same_id_and_bytes(
    api: Api, authority: trustme.CA
) -> None:
    job_id = submit(api)
    succeed(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        assert [each["state"] for each in deliveries(api, job_id)] == ["pending"] * 3
        await rounds(sender)
        started, clip, end = deliveries(api, job_id)
        assert [each["state"] for each in (started, clip, end)] == ["pending", "delivered", "delivered"]
        assert [made["status"] for made in started["tries"]] == [500]
        assert started["next_try_at"] is not None
        retry_now(sender, job_id)
        await rounds(sender)
        assert [made["status"] for made in deliveries(api, job_id)[0]["tries"]] == [500, 204]
        assert sender._cursors[job_id].over
        asked = api.client.post(f"/v1/jobs/{job_id}/deliveries/{started['sequence']}/redeliver")
        assert (asked.status_code, asked.json()["state"]) == (202, "pending")
        sender._cursors.clear()  # as another process, or after a restart
        await rounds(sender, 2)
        assert sender._cursors[job_id].over, "a job that is told again is over again"
        assert len(receiver.messages) == 5

    receiver = run(api, authority, story, statuses=[500])
    assert types(receiver) == [
        "job.started", "job.clip_finished", "job.succeeded", "job.started", "job.started"
    ]  # fmt: skip
    first, *_, last = receiver.messages
    assert first[0]["webhook-id"] == last[0]["webhook-id"] == deliveries(api, job_id)[0]["id"]
    assert first[1] == last[1]


def test_a_refused_webhook_says_so_and_can_be_taken_up_again(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    fail(api, job_id)

    async def story(sender: WebhookSender, receiver: Receiver) -> None:
        await rounds(sender, 2)
        assert [each["state"] for each in deliveries(api, job_id)] == ["failed", "not_sent"]
        end = deliveries(api, job_id)[1]["sequence"]
        assert api.client.post(f"/v1/jobs/{job_id}/deliveries/{end}/redeliver").status_code == 202
        sender._cursors.clear()
        await rounds(sender, 2)
        assert deliveries(api, job_id)[1]["state"] == "delivered"

    receiver = run(api, authority, story, statuses=[410])
    assert types(receiver)[-1] == "job.failed"


def test_why_there_was_no_answer_is_told(api: Api, authority: trustme.CA) -> None:
    job_id = submit(api)
    start(api, job_id)

    async def story(sender: WebhookSender, _: Receiver) -> None:
        await rounds(sender)

    run(api, authority, story, policy=lambda address: False)
    (made,) = deliveries(api, job_id)[0]["tries"]
    assert (made["status"], "not public" in made["error"]) == (None, True)


def test_a_message_is_not_sent_for_ever_and_its_log_stays_small(api: Api) -> None:
    job_id = submit(api)
    job = start(api, job_id)
    for _ in range(MOST_TRIES_KEPT + 5):
        note_try(api.store, job, Try(at=utcnow(), seconds=0.1, status=500))
    assert len(read_log(api.store, job_id).tries[1]) == MOST_TRIES_KEPT
    refused = api.client.post(f"/v1/jobs/{job_id}/deliveries/1/redeliver")
    assert (refused.status_code, refused.json()["code"]) == (429, "deliveries_limit")
    assert refused.json()["limit"] == MOST_TRIES
    assert api.client.post(f"/v1/jobs/{job_id}/deliveries/2/redeliver").status_code == 404
    assert api.client.post(f"/v1/jobs/{job_id}/deliveries/0/redeliver").status_code == 422
    api.client.delete(f"/v1/jobs/{job_id}")
    note_try(api.store, job, Try(at=utcnow(), seconds=0.1, status=500))
    assert not api.store.exists(f"jobs/{job_id}"), "a log must not bring back the folder of a deleted job"


def test_while_another_process_tells_the_job_it_is_busy(api: Api) -> None:
    job_id = submit(api)
    start(api, job_id)
    assert api.services.hints._queue.claim(f"webhook {job_id}", "another process", 30)
    answer = api.client.post(f"/v1/jobs/{job_id}/deliveries/1/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")


def test_a_key_has_a_secret_of_its_own_that_others_neither_see_nor_sign_with(
    api: Api, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = create_key(api.store, "ada"), create_key(api.store, "bob")
    headers = {"Authorization": f"Bearer {ada.token}"}
    assert api.client.get("/v1/webhooks/secret", headers=headers).status_code == 404
    first = api.client.post("/v1/webhooks/secret", headers=headers).json()["secret"]
    assert api.client.get("/v1/webhooks/secret", headers=headers).json()["secret"] == first
    second = api.client.post("/v1/webhooks/secret", headers=headers).json()["secret"]
    of_server = webhook_secret(api.store, None)
    assert len({first, second, of_server}) == 3
    for key in (ada, bob):
        start(api, submit(api, key))

    async def story(sender: WebhookSender, _: Receiver) -> None:
        await rounds(sender)
        monkeypatch.setattr(signing_secrets, "OLD_SIGNS_TOO", timedelta(0))
        start(api, submit(api, ada))
        await rounds(sender)

    receiver = run(api, authority, story)
    jobs = {json.loads(body)["data"]["id"]: (headers, body) for headers, body in receiver.messages}
    owners = {job_id: api.services.journal.read(job_id).submitted.owner for job_id in sorted(jobs)}
    adas = [jobs[job_id] for job_id in sorted(jobs) if owners[job_id] == ada.key.id]
    (bobs,) = [jobs[job_id] for job_id in jobs if owners[job_id] == bob.key.id]

    def verifies(secret: str, message: tuple[dict[str, str], bytes]) -> bool:
        try:
            Webhook(secret).verify(message[1], message[0])
        except WebhookVerificationError:
            return False
        return True

    assert [verifies(second, message) for message in adas] == [True, True]
    assert [verifies(first, message) for message in adas] == [True, False], "the old one signs for a while"
    assert [verifies(of_server, message) for message in (*adas, bobs)] == [False, False, True]
