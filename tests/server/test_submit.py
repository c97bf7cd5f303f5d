"""Submitting a job."""

from __future__ import annotations

from jobs.contract import JobState
from tests.server.conftest import Api
from tests.server.inputs import form


def test_a_submit_is_stored_durably_and_answered_with_202(api: Api) -> None:
    answer = api.client.post("/v1/generate", files=form(seed=7))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["seed"] == 7
    assert job["checkpoint"] == {"name": "tiny", "trained": False}
    assert api.services.journal.read(job["id"]).state is JobState.QUEUED
    assert api.store.list_folders("scratch") == []
    assert api.client.get(job["urls"]["self"]).json()["id"] == job["id"]
