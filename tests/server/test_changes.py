"""Changing a job: its metadata at any time, its priority while it waits; and the examples for newcomers."""

from __future__ import annotations

from typing import Any

import pytest

from contract.job import Priority
from jobs.queue import JobQueue
from server.keys import Scope, create_key
from tests.server.conftest import Api
from tests.server.inputs import form
from tests.server.journals import fail, start, succeed


def submit(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**changes))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def patch(api: Api, job: dict[str, Any], **body: Any) -> Any:
    return api.client.patch(f"/v1/jobs/{job['id']}", json=body)


def test_metadata_are_merged_in_every_state(api: Api) -> None:
    job = submit(api, metadata='{"shop": "a", "old": "x"}')
    seen = patch(api, job, metadata={"title": "Green can", "old": None}).json()
    assert seen["metadata"] == {"shop": "a", "title": "Green can"}
    assert patch(api, job, metadata={}).json()["metadata"] == seen["metadata"]
    start(api, job["id"])
    assert patch(api, job, metadata={"title": "Can"}).json()["status"] == "processing"
    succeed(api, job["id"], started=True)
    over = patch(api, job, metadata={"shop": "b"})
    assert (over.json()["status"], over.json()["metadata"]) == ("succeeded", {"shop": "b", "title": "Can"})
    listed = api.client.get("/v1/jobs", params={"metadata": "shop:b"}).json()["data"]
    assert [entry["metadata"] for entry in listed] == [{"shop": "b", "title": "Can"}]
    assert api.services.journal.as_of(job["id"], 0).submitted.metadata == {"shop": "a", "old": "x"}


def test_a_change_reaches_jobs_that_are_made_from_it(api: Api) -> None:
    job = submit(api)
    fail(api, job["id"])
    patch(api, job, metadata={"title": "Can"})
    again = api.client.post(f"/v1/jobs/{job['id']}/retry").json()
    assert again["metadata"] == {"title": "Can"}


def test_a_waiting_job_is_moved_in_the_queue_and_a_running_one_is_not(api: Api) -> None:
    first, second = submit(api), submit(api)
    assert patch(api, second, priority="high").json()["priority"] == "high"
    queue = JobQueue(api.services.settings, str(api.services.settings.redis_url))
    waiting = queue.snapshot("tiny", max_age_s=0).waiting
    assert [(each.id, each.priority) for each in waiting] == [
        (second["id"], Priority.HIGH),
        (first["id"], Priority.NORMAL),
    ]
    assert api.services.journal.read(second["id"]).submitted.priority is Priority.HIGH
    start(api, first["id"])
    late = patch(api, first, priority="low")
    assert (late.status_code, late.json()["code"], late.json()["field"]) == (
        409,
        "job_not_queued",
        "priority",
    )
    assert patch(api, first, priority="normal").status_code == 200, "it has that one"


def test_a_key_may_not_raise_a_job_above_its_own_priority(api: Api) -> None:
    key = create_key(api.store, "ada")
    bearer = {"Authorization": f"Bearer {key.token}"}
    job = api.client.post("/v1/generate", files=form(), headers=bearer).json()
    answer = api.client.patch(f"/v1/jobs/{job['id']}", json={"priority": "high"}, headers=bearer)
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (
        422,
        "out_of_range",
        "normal",
    )
    reader = create_key(api.store, "bob", [Scope.READ])
    answer = api.client.patch(
        f"/v1/jobs/{job['id']}", json={}, headers={"Authorization": f"Bearer {reader.token}"}
    )
    assert answer.json()["code"] == "insufficient_scope"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"prompt": "x"}, "unknown_field", "prompt"),
        ({"metadata": {"a": 1}}, "invalid_value", "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "too_long", "metadata.a"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "too_many", "metadata"),
        ({"priority": "highest"}, "invalid_value", "priority"),
    ],
)
def test_a_bad_change_is_refused_by_its_field(api: Api, body: dict[str, Any], code: str, field: str) -> None:
    job = submit(api)
    answer = patch(api, job, **body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["metadata"] == {}


def test_a_damaged_change_costs_no_job(api: Api) -> None:
    job = submit(api, metadata='{"shop": "a"}')
    patch(api, job, metadata={"shop": "b"})
    api.store.local_path(f"jobs/{job['id']}/changes.json").write_bytes(b"{")
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["metadata"] == {"shop": "a"}
    assert patch(api, job, metadata={"shop": "c"}).json()["metadata"] == {"shop": "c"}


def test_a_job_that_is_gone_cannot_be_changed(api: Api) -> None:
    job = submit(api)
    api.client.delete(f"/v1/jobs/{job['id']}")
    assert patch(api, job, metadata={"a": "b"}).status_code == 404


def test_everybody_gets_the_examples_and_they_make_a_job(api: Api) -> None:
    key = create_key(api.store, "ada")
    (example,) = api.client.get("/v1/examples").json()["data"]
    names = ("person_image", "product_image", "audio")
    files = {name: api.client.get(example[name]) for name in names}
    assert [files[name].headers["content-type"] for name in names] == ["image/png", "image/png", "audio/wav"]
    answer = api.client.post(
        "/v1/generate",
        files=form(prompt=example["prompts"], **{name: files[name].content for name in names}),
        headers={"Authorization": f"Bearer {key.token}"},
    )
    assert answer.status_code == 202
    assert answer.json()["num_clips"] == len(example["prompts"])
    assert answer.json()["warnings"] == []
    for name in ("prompts.txt", "..%2fsamples.py", "x"):
        assert api.client.get(f"/v1/examples/{name}").status_code == 404
