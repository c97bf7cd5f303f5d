"""The application on a store in S3."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from botocore.endpoint import Endpoint

from jobs.cards import publish_card
from server.keys import Scope, create_key
from tests.s3_server import BUCKET, empty_bucket, s3_server
from tests.server.conftest import CARD, Api, ApiFactory
from tests.server.inputs import form
from tests.server.journals import succeed

pytestmark = pytest.mark.slow


@pytest.fixture
def api(make_api: ApiFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with s3_server() as server:
        empty_bucket(server, monkeypatch)
        api = make_api(storage_url=f"s3://{BUCKET}/one")
        publish_card(api.services.store, CARD)
        yield api


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
