"""Two versions side by side: what 0.1.0 wrote is read and continued, and what a newer one adds stops nobody.

tests/data/journals_0.1.0.json holds the journals of four jobs as that version left them, after kills.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.entries import Started
from contract.job import JobState, utcnow
from contract.state import Job
from jobs.artifacts import FolderStore
from jobs.journal import Journal, UnreadableJob

KEPT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "journals_0.1.0.json").read_text())


def put(journal: Journal, name: str, change: Callable[[Any], Any] | None = None) -> str:
    """Store a kept journal, byte for byte or with each entry changed."""
    job_id: str = KEPT[name]["id"]
    assert isinstance(journal.store, FolderStore)
    folder = journal.store.root / "jobs" / job_id / "journal"
    folder.mkdir(parents=True)
    for number, text in enumerate(KEPT[name]["entries"]):
        written = text if change is None else json.dumps(change(json.loads(text)))
        (folder / f"{number:06d}.json").write_text(written)
    return job_id


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(FolderStore(tmp_path))


@pytest.mark.parametrize("name", KEPT)
def test_journals_of_the_release_before_are_read_as_it_meant_them(name: str, journal: Journal) -> None:
    job = journal.read(put(journal, name))
    assert job.state is JobState(name)
    assert job.sequence == len(KEPT[name]["entries"]) - 1
    assert (job.video is not None) == (name == "succeeded")
    assert (job.error is not None) == (name == "failed")
    if name == "succeeded":
        assert [clip.attempt for clip in job.clips] == [1, 2]
    if name == "failed":
        assert job.burned_attempts == 2, "and the last one failed it"


def test_a_job_that_waited_when_the_version_changed_goes_on(journal: Journal) -> None:
    job = journal.read(put(journal, "queued"))
    started = journal.append(job, Started(at=utcnow(), attempt=1, worker="w"))
    assert journal.read(job.id) == started


def deepened(value: Any) -> Any:
    """The value with a field that nobody knows in every object of it, however deep."""
    match value:
        case dict():
            return {name: deepened(inner) for name, inner in value.items()} | {"of_tomorrow": {"a": [1]}}
        case list():
            return [deepened(inner) for inner in value]
        case _:
            return value


def newer(entry: Any) -> Any:
    """An entry as a newer version may write it: more fields, everywhere but in maps of the client's own."""
    made = deepened(entry)
    for own in ("metadata", "received"):
        if own in made:
            made[own] = entry[own]
    return made


@pytest.mark.parametrize("name", KEPT)
def test_fields_that_a_newer_version_adds_at_any_depth_stop_no_older_reader(
    name: str, journal: Journal, tmp_path: Path
) -> None:
    plain = Journal(FolderStore(tmp_path / "plain"))
    assert journal.read(put(journal, name, newer)) == plain.read(put(plain, name))


def test_an_entry_of_a_new_type_stops_its_job_alone(journal: Journal) -> None:
    job_id = put(journal, "canceled")
    other = put(journal, "queued")
    assert isinstance(journal.store, FolderStore)
    path = journal.store.root / "jobs" / other / "journal" / "000001.json"
    path.write_text(json.dumps({"type": "paused", "at": utcnow().isoformat()}))
    with pytest.raises(UnreadableJob, match="paused"):
        journal.read(other)
    assert isinstance(journal.read(job_id), Job)
