"""An API process that starts reads no journal of a finished job that it, or one before it, has read."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.entries import JobChanges
from contract.job import Priority
from jobs.journal import Journal
from server.index import JobFilter, JobIndex
from server.index_copy import IndexCopy
from server.job_summary import label_of
from tests.server.conftest import Api, ApiFactory
from tests.server.inputs import form
from tests.server.journals import fail, succeed

COPY = "finished-jobs.jsonl"
DAMAGE = ("", "\0" * 100, "[1, 0.0]\n[]\n", "[99, 0.0]\nof tomorrow\n", "{}", '[1, "x"]')


@pytest.fixture
def api(make_api: ApiFactory) -> Api:
    return make_api()


def submit(api: Api, **more: str) -> str:
    answer = api.client.post("/v1/generate", files=form(**more))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def started(api: Api, folder: Path) -> JobIndex:
    """The index of another process that has just started."""
    index = JobIndex(api.store, 1000, IndexCopy(folder))
    index.refresh()
    return index


def test_a_start_reads_what_is_new_or_unfinished_or_changed_and_nothing_else(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, failed, waiting, changed = (submit(api) for _ in range(4))
    for job_id in (finished, changed):
        succeed(api, job_id)
    fail(api, failed)
    first = started(api, tmp_path)
    journal = Journal(api.store)
    journal.change(journal.read(changed), JobChanges(metadata={"a": "b"}, priority=Priority.NORMAL))
    late = submit(api)
    read: list[str] = []
    original = Journal.read

    def noted(self: Journal, job_id: str, known: object = None) -> object:
        read.append(job_id)
        return original(self, job_id)

    monkeypatch.setattr(Journal, "read", noted)
    second = started(api, tmp_path)
    assert sorted(read) == sorted([waiting, changed, late])
    assert second.counts()[first.summaries("local")[0].state] >= 1
    before = {job.id: job for job in first.summaries("local")}
    after = {job.id: job for job in second.summaries("local")}
    assert [after[name] for name in (finished, failed)] == [before[name] for name in (finished, failed)]
    labelled = JobFilter(labels=frozenset({label_of("a:b")}))
    assert second.page(labelled, None, 10) == [changed]


def test_a_job_that_is_gone_does_not_come_back_with_the_copy(api: Api, tmp_path: Path) -> None:
    job = succeed(api, submit(api))
    assert started(api, tmp_path).page(JobFilter(), None, 10) == [job.id]
    Journal(api.store).remove(job)
    assert started(api, tmp_path).page(JobFilter(), None, 10) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_copy_that_makes_no_sense_is_made_anew(api: Api, tmp_path: Path, damage: str) -> None:
    job = succeed(api, submit(api))
    started(api, tmp_path)
    whole = (tmp_path / COPY).read_text()
    (tmp_path / COPY).write_text(damage)
    assert started(api, tmp_path).page(JobFilter(), None, 10) == [job.id]
    assert (tmp_path / COPY).read_text().splitlines()[1:] == whole.splitlines()[1:]


def test_a_copy_that_cannot_be_written_stops_nobody(api: Api, tmp_path: Path) -> None:
    job = succeed(api, submit(api))
    assert started(api, tmp_path / "missing").page(JobFilter(), None, 10) == [job.id]


def test_between_two_lists_of_all_jobs_the_unfinished_ones_are_followed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = submit(api)
    monkeypatch.setattr("server.index.LIST_SHARE", 1e-9)
    index = JobIndex(api.store, 1000)
    index.keep_up()
    later = submit(api)
    fail(api, waiting)
    index.keep_up()
    assert [job.state.value for job in index.summaries("local")] == ["failed"]
    index.refresh()
    assert index.page(JobFilter(), None, 10) == [later, waiting], "all are there with the next list"
