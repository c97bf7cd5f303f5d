"""Idempotency-Key: repeating a submit is safe."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from contract.job import JobState
from jobs.queue import JobQueue
from server.idempotency import KEPT
from server.keys import create_key
from tests.server.conftest import Api, ApiFactory, wait_for
from tests.server.inputs import form
from workers.reaper import Reaper


def submit(api: Api, key: str, **changes: Any) -> Any:
    return api.client.post("/v1/generate", files=form(**changes), headers={"Idempotency-Key": key})


def test_the_same_request_again_gets_the_same_job(api: Api) -> None:
    first, second = submit(api, "k1"), submit(api, "k1")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(api.store.list_names("jobs")) == 1


def test_another_request_under_the_same_key_is_409_and_not_to_be_retried(api: Api) -> None:
    submit(api, "k1", seed=1)
    for changes in ({"seed": 2}, {"seed": 1, "prompt": ["other"]}, {"seed": 1, "product_image": None}):
        answer = submit(api, "k1", **changes)
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused")
        assert answer.headers["x-should-retry"] == "false"
    assert len(api.store.list_names("jobs")) == 1


def test_fifty_identical_submits_at_once_make_one_job(api: Api) -> None:
    answers: list[Any] = []
    crowd = [threading.Thread(target=lambda: answers.append(submit(api, "crowd"))) for _ in range(50)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(api.store.list_names("jobs")) == 1
    assert not api.store.list_names("scratch")


def test_a_crash_between_claim_and_job_is_healed_by_the_repetition(api: Api) -> None:
    job_id = submit(api, "k1").json()["id"]
    # As if the process had died after the claim and before the job.
    api.store.remove_folder(f"jobs/{job_id}")
    again = submit(api, "k1")
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    assert api.services.journal.read(job_id).state is JobState.QUEUED


def test_the_job_is_found_after_a_restart(make_api: ApiFactory) -> None:
    first = submit(make_api(), "k1").json()["id"]
    assert submit(make_api(), "k1").json()["id"] == first


def test_a_deleted_job_is_not_made_again(api: Api) -> None:
    job = submit(api, "k1").json()
    api.client.delete(job["urls"]["self"])
    answer = submit(api, "k1")
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotent_job_gone")


def test_a_job_whose_time_was_up_is_not_made_again_while_its_key_is_remembered(
    make_api: ApiFactory, redis_url: str
) -> None:
    api = make_api(retention_s=1)
    api.client.post(f"/v1/jobs/{submit(api, 'k1').json()['id']}/cancel")
    reaper = Reaper(api.services.settings, api.store, JobQueue(api.services.settings, redis_url))

    def removed() -> bool:
        reaper.round()
        reaper._next_expiry = 0.0
        return not api.store.list_names("jobs")

    wait_for(removed, 10)
    answer = submit(api, "k1")
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotent_job_gone")
    api.services.idempotency.expire(api.store.now())
    assert len(api.store.list_names("idempotency")) == 2, "claim and mark"


def test_a_mark_whose_claim_is_gone_goes_too(api: Api) -> None:
    api.client.delete(submit(api, "k1").json()["urls"]["self"])
    (claim,) = (name for name in api.store.list_names("idempotency") if name.endswith(".claim"))
    api.store.remove(f"idempotency/{claim}")  # by a process that then died
    api.services.idempotency.expire(api.store.now())
    assert api.store.list_names("idempotency") == []


def test_a_job_that_outlives_its_key_leaves_no_mark(api: Api) -> None:
    job = submit(api, "k1").json()
    for name in api.store.list_names("idempotency"):
        api.store.remove(f"idempotency/{name}")  # as after 48 hours
    api.client.delete(job["urls"]["self"])
    assert api.store.list_names("idempotency") == []


def test_a_refused_request_does_not_use_the_key_up(api: Api) -> None:
    assert submit(api, "k1", seed=-2).status_code == 422
    assert submit(api, "k1", seed=1).status_code == 202


def test_keys_of_two_owners_are_two_keys(api: Api) -> None:
    ids = set()
    for name in ("ada", "bob"):
        token = create_key(api.store, name).token
        headers = {"Idempotency-Key": "k1", "Authorization": f"Bearer {token}"}
        ids.add(api.client.post("/v1/generate", files=form(), headers=headers).json()["id"])
    assert len(ids) == 2


def test_a_repetition_is_answered_even_when_the_queue_is_full(make_api: ApiFactory) -> None:
    api = make_api(max_queued_jobs=1)
    job_id = submit(api, "k1").json()["id"]
    assert submit(api, "k2").status_code == 429
    assert submit(api, "k1").json()["id"] == job_id


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_bad_key_is_refused(api: Api, key: str) -> None:
    answer = submit(api, key)
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def test_claims_are_kept_two_days_and_then_forgotten(api: Api) -> None:
    submit(api, "k1")
    keys = api.services.idempotency
    keys.expire(api.store.now())
    assert keys.known("local", "k1")
    path = api.store.local_path(keys.claim_key("local", "k1"))
    written = api.store.now() - KEPT.total_seconds() - 1
    os.utime(path, (written, written))
    keys.expire(api.store.now())
    assert api.store.list_names("idempotency") == []


@pytest.mark.parametrize("damage", [b"", bytes(200), b"{", b"[]", b'{"job_id": 1}'])
def test_a_claim_that_a_power_cut_left_unreadable_counts_as_none(api: Api, damage: bytes) -> None:
    keys = api.services.idempotency
    api.store.write(keys.claim_key("local", "k1"), damage)
    first = submit(api, "k1")
    assert first.status_code == 202
    assert submit(api, "k1").json()["id"] == first.json()["id"]
    assert submit(api, "k1", seed=5).json()["code"] == "idempotency_key_reused"
    api.client.delete(first.json()["urls"]["self"])
    assert submit(api, "k1").json()["code"] == "idempotent_job_gone"
    assert api.store.passed_over.counts()["claim"] == 1
