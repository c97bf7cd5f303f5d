"""Lists of jobs are made from memory, and still tell what is true now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from contract.entries import JobChanges
from contract.job import Priority
from jobs.journal import Journal, job_prefix
from server import remembered
from tests.server.conftest import Api, wait_for
from tests.server.inputs import form
from tests.server.journals import start, succeed


def submit(api: Api, **changes: Any) -> str:
    return str(api.client.post("/v1/generate", files=form(**changes)).json()["id"])


def listed(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get("/v1/jobs").json()["data"]
    return found


def without_place(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not come from Redis, a moment later."""
    return [{name: value for name, value in job.items() if name != "queue_position"} for job in jobs]


def elsewhere(api: Api, job_id: str, at: float | None = None, **metadata: str) -> None:
    """Another API process changes a job, and the store says when."""
    journal = Journal(api.store)
    journal.change(journal.read(job_id), JobChanges(metadata=metadata, priority=Priority.NORMAL))
    if at is not None:
        os.utime(api.store.root / job_prefix(job_id) / "changes.json", (at, at))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the jobs whose journals are read from the beginning."""
    seen: list[str] = []
    read: Callable[..., Any] = Journal.read

    def counted(self: Journal, job_id: str, known: Any = None) -> Any:
        if known is None:
            seen.append(job_id)
        return read(self, job_id, known)

    monkeypatch.setattr(Journal, "read", counted)
    return seen


def test_a_list_tells_of_each_job_what_the_job_tells_itself(api: Api) -> None:
    done, running, waiting = (submit(api, metadata=f'{{"n": "{number}"}}') for number in range(3))
    for _ in range(2):  # made, and remembered
        states = [api.client.get(f"/v1/jobs/{job}").json() for job in (waiting, running, done)]
        assert without_place(listed(api)) == without_place(states)
    succeed(api, done)
    start(api, running)
    for _ in range(2):
        states = [api.client.get(f"/v1/jobs/{job}").json() for job in (waiting, running, done)]
        assert [state["status"] for state in states] == ["queued", "processing", "succeeded"]
        assert without_place(listed(api)) == without_place(states)
    page = api.client.get("/v1/jobs?limit=2").json()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list", waiting, running, True
    )  # fmt: skip
    api.client.delete(f"/v1/jobs/{done}")
    assert [job["id"] for job in listed(api)] == [waiting, running]


def test_a_job_that_is_over_is_read_once(api: Api, reads: list[str]) -> None:
    job = submit(api)
    succeed(api, job)
    listed(api)
    reads.clear()
    assert listed(api) == listed(api)
    assert reads == []


def test_what_another_process_changes_is_told_even_twice_within_one_tick_of_the_clock(api: Api) -> None:
    job = submit(api)
    succeed(api, job)
    assert listed(api)[0]["metadata"] == {}
    now = time.time()
    for title in ("one", "two"):
        elsewhere(api, job, at=now, title=title)
        assert listed(api)[0]["metadata"] == {"title": title}
    long_ago = now - 2 * remembered.SETTLED_S
    elsewhere(api, job, at=long_ago, title="three")
    assert listed(api)[0]["metadata"] == listed(api)[0]["metadata"] == {"title": "three"}
    elsewhere(api, job, title="four")
    assert listed(api)[0]["metadata"] == {"title": "four"}


def test_a_waiting_job_is_told_with_its_place_as_it_changes(api: Api) -> None:
    first, second = submit(api), submit(api)

    def places() -> dict[str, int | None]:
        return {job["id"]: job["queue_position"] for job in listed(api)}

    wait_for(lambda: places() == {first: 1, second: 2}, 20)
    api.client.post(f"/v1/jobs/{first}/cancel")
    wait_for(lambda: places() == {first: None, second: 1}, 20)


def test_only_so_many_are_remembered(api: Api, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(remembered, "MOST", 2)
    jobs = [submit(api) for _ in range(3)]
    for job in jobs:
        succeed(api, job)
    assert [job["id"] for job in listed(api)] == jobs[::-1]
    reads.clear()
    assert [job["id"] for job in listed(api)] == jobs[::-1]
    assert reads, "the third has no place"
