from __future__ import annotations

import threading
from pathlib import Path

import pytest

from contract.entries import (
    JOURNAL_ENTRY,
    Canceled,
    ClipFinished,
    Failed,
    Interrupted,
    JournalEntry,
    Started,
    Submitted,
    Succeeded,
)
from contract.job import InputFiles, JobState, StoredFile, new_job_id, utcnow
from contract.params import GenerationParams
from contract.state import Job
from contract.warnings import JobWarning
from jobs.artifacts import FolderStore
from jobs.journal import IllegalEntry, JobNotFound, Journal, Outdated, verdict

FILE = StoredFile(name="x", sha256="0" * 64, size=1, media_type="x/x")


def submitted() -> Submitted:
    return Submitted(
        at=utcnow(),
        owner="alice",
        checkpoint="c",
        trained=False,
        params=GenerationParams(
            prompts=("a",),
            negative_prompt="",
            width=64,
            height=64,
            num_inference_steps=1,
            guidance_scale=1,
            flow_shift=7,
            product_scale=1,
            seed=0,
            num_clips=2,
            num_frames=160,
        ),
        inputs=InputFiles(person_image=FILE, audio=FILE),
        retention_s=60,
        cost=1,
    )


def test_an_entry_from_before_there_were_warnings_is_read() -> None:
    kept = submitted().model_copy(update={"warnings": (JobWarning(code="of_tomorrow", message="m"),)})
    assert JOURNAL_ENTRY.validate_json(kept.model_dump_json()) == kept
    older = kept.model_dump(mode="json", exclude={"warnings"})
    entry = JOURNAL_ENTRY.validate_python(older)
    assert isinstance(entry, Submitted)
    assert entry.warnings == ()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(FolderStore(tmp_path))


def submit(journal: Journal) -> Job:
    assert isinstance(journal.store, FolderStore)
    folder = journal.store.scratch() / "incoming"
    folder.mkdir()
    (folder / "person").write_bytes(b"photo")
    return journal.submit(new_job_id(), folder, submitted())


def started(attempt: int = 1) -> Started:
    return Started(at=utcnow(), attempt=attempt, worker="w")


def clip(index: int, attempt: int = 1) -> ClipFinished:
    return ClipFinished(at=utcnow(), attempt=attempt, clip=index, video=FILE, motion=FILE, gpu_seconds=2)


def succeeded(attempt: int = 1) -> Succeeded:
    return Succeeded(at=utcnow(), attempt=attempt, video=FILE, duration_s=6.4, gpu_seconds=1)


def test_a_submitted_job_is_queued_with_its_files(journal: Journal) -> None:
    job = submit(journal)
    assert journal.read(job.id) == job
    assert job.state is JobState.QUEUED
    assert journal.store.read(f"jobs/{job.id}/person") == b"photo"
    assert list(journal.store.scratch().iterdir()) == []


def test_a_whole_life_folds_into_the_finished_job(journal: Journal) -> None:
    job = submit(journal)
    interrupted = Interrupted(at=utcnow(), attempt=1, reason="child_died", burns_attempt=True)
    entries: list[JournalEntry] = [started(), clip(0), interrupted, started(2), clip(1, 2), succeeded(2)]
    for entry in entries:
        job = journal.append(job, entry)
    assert journal.read(job.id) == job
    assert (job.state, job.attempt, job.burned_attempts) == (JobState.SUCCEEDED, 2, 1)
    assert [finished.clip for finished in job.clips] == [0, 1]
    assert job.gpu_seconds == 5
    assert job.completed_at == entries[-1].at
    assert job.started_at == entries[0].at


def test_reading_on_from_an_earlier_state_gives_the_same_job(journal: Journal) -> None:
    early = submit(journal)
    late = journal.append(journal.append(early, started()), clip(0))
    assert journal.read(early.id, known=early) == late


def test_a_job_is_told_as_it_was_with_each_entry(journal: Journal) -> None:
    job = submit(journal)
    states = [job]
    for entry in (started(), clip(0), clip(1), succeeded()):
        states.append(journal.append(states[-1], entry))
    assert [journal.as_of(job.id, number) for number in range(5)] == states
    assert [state for _, state in journal.follow(states[1])] == states[2:]
    assert [entry.type for entry in journal.entries(job.id, 3)] == ["clip_finished", "succeeded"]
    assert [journal.moved_on(job.id, number) for number in (3, 4)] == [True, False]
    for beyond in (job.id, 5), ("job_unknown", 0):
        with pytest.raises(JobNotFound):
            journal.as_of(*beyond)
    assert list(journal.entries("job_unknown")) == []


def test_a_job_id_is_submitted_once(journal: Journal) -> None:
    assert isinstance(journal.store, FolderStore)
    first = submit(journal)
    again = journal.store.scratch() / "again"
    again.mkdir()
    with pytest.raises(FileExistsError):
        journal.submit(first.id, again, submitted())
    assert journal.read(first.id) == first


def test_of_many_racing_claims_exactly_one_succeeds(journal: Journal) -> None:
    job = submit(journal)
    start = threading.Barrier(16)
    won: list[int] = []

    def claim(number: int) -> None:
        start.wait()
        try:
            journal.append(job, Started(at=utcnow(), attempt=1, worker=str(number)))
        except Outdated:
            return
        won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert journal.read(job.id).worker == str(won[0])


def test_who_read_before_somebody_else_wrote_must_read_again(journal: Journal) -> None:
    running = journal.append(submit(journal), started())
    journal.append(running, Canceled(at=utcnow(), by="alice"))
    with pytest.raises(Outdated):
        journal.append(running, succeeded())
    assert journal.read(running.id).state is JobState.CANCELED


@pytest.mark.parametrize(
    "entry",
    [
        submitted(),
        started(2),
        clip(0),
        succeeded(),
        Failed(at=utcnow(), attempt=1, error={"code": "x", "message": "x", "stage": "loading"}),  # type: ignore[arg-type]
        Interrupted(at=utcnow(), attempt=0, reason="error", burns_attempt=True),
    ],
    ids=lambda entry: entry.type,
)
def test_what_cannot_happen_to_a_queued_job_is_not_written(journal: Journal, entry: JournalEntry) -> None:
    job = submit(journal)
    with pytest.raises(IllegalEntry):
        journal.append(job, entry)
    assert journal.read(job.id) == job


@pytest.mark.parametrize(
    "entry", [started(2), clip(0), succeeded(), Canceled(at=utcnow(), by="a")], ids=lambda entry: entry.type
)
def test_no_entry_can_follow_the_end_of_a_job(journal: Journal, entry: JournalEntry) -> None:
    job = journal.append(submit(journal), Canceled(at=utcnow(), by="alice"))
    with pytest.raises(IllegalEntry):
        journal.append(job, entry)


def test_clips_are_recorded_in_order_and_by_the_newest_attempt_only(journal: Journal) -> None:
    job = journal.append(submit(journal), started())
    with pytest.raises(IllegalEntry):
        journal.append(job, clip(1))
    with pytest.raises(IllegalEntry):
        journal.append(job, clip(0, attempt=2))


def test_a_removed_job_takes_no_entries(journal: Journal) -> None:
    job = submit(journal)
    journal.store.remove_folder(f"jobs/{job.id}")
    with pytest.raises(JobNotFound):
        journal.append(job, started())
    with pytest.raises(JobNotFound):
        journal.read(job.id, known=job)


def test_the_last_attempt_that_ends_badly_fails_the_job_with_its_reason(journal: Journal) -> None:
    job = submit(journal)
    for attempt in (1, 2):
        job = journal.append(job, started(attempt))
        entry = verdict(job, reason="child_died", message="boom", max_attempts=2)
        job = journal.append(job, entry)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("child_died", "boom (attempt 2 of 2)")


def test_a_graceful_stop_never_fails_a_job(journal: Journal) -> None:
    job = submit(journal)
    for attempt in range(1, 6):
        job = journal.append(job, started(attempt))
        entry = verdict(job, reason="shutdown", message="", max_attempts=1, burns_attempt=False)
        job = journal.append(job, entry)
    assert (job.state, job.burned_attempts) == (JobState.QUEUED, 0)


def test_job_ids_sort_by_time_and_are_not_guessable() -> None:
    ids = [new_job_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    times = [job_id[:13] for job_id in ids]
    assert times == sorted(times)
    assert all(len(job_id) == len(ids[0]) and job_id[4:].isalnum() for job_id in ids)
