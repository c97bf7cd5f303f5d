"""The application on a store in S3."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from botocore.endpoint import Endpoint

from jobs.artifacts import FOLDERS
from jobs.cards import publish_card
from jobs.s3_store import S3Store
from server.app import _forget_old
from server.keys import Scope, create_key
from tests.s3_server import BUCKET, S3Server, empty_bucket, s3_server
from tests.server.conftest import CARD, Api, ApiFactory
from tests.server.inputs import form
from tests.server.journals import succeed

pytestmark = pytest.mark.slow


STRAYS = ("..", ".", "", "%2e%2e", "a%20b%2Bc%26d", "%C3%BC", "x%0Ay", "lost%2Bfound", "job_short")
"""Names that others may give their objects, as they go over the wire."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as running:
        empty_bucket(running, monkeypatch)
        yield running


@pytest.fixture
def api(server: S3Server, make_api: ApiFactory) -> Api:
    api = make_api(storage_url=f"s3://{BUCKET}/one")
    publish_card(api.services.store, CARD)
    return api


def test_objects_of_others_disturb_nobody(api: Api, server: S3Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for folder in FOLDERS:
        for name in STRAYS:
            for inside in ("", "/inside", "/inside/inside"):
                connection.request("PUT", f"/{BUCKET}/one/{folder}/{name}{inside}", b"not ours")
                connection.getresponse().read()
    store = api.services.store
    assert isinstance(store, S3Store)
    assert ".." in store.list_names("files")
    answer = api.client.post("/v1/generate", files=form(), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202, answer.text
    api.services.index.refresh()
    _forget_old(api.services)
    assert [job["id"] for job in api.client.get("/v1/jobs").json()["data"]] == [answer.json()["id"]]
    assert api.client.get("/v1/models").json()["data"][0]["id"] == CARD.name
    assert api.client.get("/v1/admin/owners").status_code == 200
    assert ".." in store.list_names("files"), "nothing of others is removed"


def test_the_event_loop_never_waits_for_s3(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_loop: list[str] = []
    send = Endpoint.make_request

    def noted(self: Endpoint, operation: Any, request: Any) -> Any:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            on_the_loop.append(operation.name)
        return send(self, operation, request)

    key = create_key(api.services.store, "ada", [Scope.SUBMIT, Scope.READ])
    monkeypatch.setattr(Endpoint, "make_request", noted)
    headers = {"Authorization": f"Bearer {key.token}", "Idempotency-Key": "k"}
    answers = [api.client.post("/v1/generate", files=form(), headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
    job_id = answers[0].json()["id"]
    succeed(api, job_id)
    events = api.client.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert "event: job.succeeded" in events.text
    assert api.client.get(f"/v1/jobs/{job_id}/video", headers=headers).status_code == 200
    assert api.client.delete(f"/v1/jobs/{job_id}", headers=headers).status_code == 200
    assert on_the_loop == []
