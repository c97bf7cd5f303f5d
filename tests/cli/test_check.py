"""`cointeract check`: a sound store passes, and each way in which one can be broken is found and named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from contract.entries import ClipFinished, JobChanges, Started, Submitted, Succeeded
from contract.job import InputFiles, Priority, StoredFile, new_job_id, utcnow
from contract.params import GenerationParams
from contract.settings import Settings
from contract.state import Job
from jobs.artifacts import ArtifactStore
from jobs.cards import publish_card
from jobs.job_log import AttemptLog, write_attempt_log
from jobs.journal import Journal, job_prefix
from jobs.kept_files import KeptFile, KeptFiles, file_id
from jobs.storage import open_store
from jobs.usage import SpentUsage, note_usage
from server.idempotency import IdempotencyKeys
from server.keys import create_key
from tests.s3_server import BUCKET, S3Server, empty_bucket, s3_server
from tests.server.conftest import CARD

pytestmark = pytest.mark.slow
runner = CliRunner()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    url = None
    if request.param == "s3":
        empty_bucket(request.getfixturevalue("server"), monkeypatch)
        url = f"s3://{BUCKET}/here"
        monkeypatch.setenv("COINTERACT_STORAGE_URL", url)
    return Settings(data_dir=tmp_path / "data", storage_url=url)


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_store(settings)


def check(settings: Settings) -> tuple[int, Any]:
    """Exit status and what it prints as JSON."""
    result = runner.invoke(app, ["check", "--data", str(settings.data_dir), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


def wrong(settings: Settings) -> list[tuple[str, str]]:
    """Kind and key of what is found, which must be a problem."""
    status, report = check(settings)
    assert status == 1
    assert not report["ok"]
    return [(each["kind"], each["key"]) for each in report["findings"] if each["is_problem"]]


def stored(name: str, data: bytes) -> StoredFile:
    return StoredFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type="x/x")


def put(store: ArtifactStore, job_id: str, name: str) -> StoredFile:
    data = name.encode() * 100
    source = store.scratch() / name
    source.write_bytes(data)
    assert store.put_file(source, f"{job_prefix(job_id)}/{name}")
    return stored(name, data)


def submit(store: ArtifactStore, **more: object) -> Job:
    job_id = new_job_id()
    folder = store.scratch() / job_id
    (folder / "inputs").mkdir(parents=True)
    names = ("inputs/person.png", "inputs/speech.wav")
    for name in names:
        (folder / name).write_bytes(name.encode())
    person, speech = (stored(name, name.encode()) for name in names)
    params = GenerationParams(
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
    )
    submitted = Submitted(
        at=utcnow(),
        owner="local",
        checkpoint="c",
        trained=False,
        params=params,
        inputs=InputFiles(person_image=person, audio=speech),
        retention_s=60,
        cost=1,
    )
    return Journal(store).submit(job_id, folder, submitted.model_copy(update=more))


def start(store: ArtifactStore, job: Job) -> Job:
    return Journal(store).append(job, Started(at=utcnow(), attempt=1, worker="w"))


def clip(store: ArtifactStore, job: Job, number: int) -> Job:
    entry = ClipFinished(
        at=utcnow(),
        attempt=1,
        clip=number,
        video=put(store, job.id, f"clip-{number}.mp4"),
        motion=put(store, job.id, f"motion-{number}.bin"),
        gpu_seconds=1.0,
    )
    return Journal(store).append(job, entry)


def finish(store: ArtifactStore, **more: object) -> Job:
    job = start(store, submit(store, **more))
    for number in (0, 1):
        job = clip(store, job, number)
    video = put(store, job.id, "video-1.mp4")
    return Journal(store).append(
        job, Succeeded(at=utcnow(), attempt=1, video=video, duration_s=1.0, gpu_seconds=1.0)
    )


def keep_file(store: ArtifactStore) -> KeptFile:
    folder = store.scratch() / "kept"
    folder.mkdir()
    (folder / "decoded.png").write_bytes(b"pixels")
    file = KeptFile(
        id=file_id("local", "image", "0"),
        owner="local",
        kind="image",
        received_sha256="0",
        received_bytes=1,
        decoded=stored("decoded.png", b"pixels"),
        answer={},
        created_at=utcnow(),
        expires_at=utcnow(),
    )
    assert KeptFiles(store).put(file, folder)
    return file


def fill(store: ArtifactStore) -> Job:
    """Something of everything, in order. Returns the finished job."""
    job = finish(store)
    submit(store)
    start(store, submit(store))
    Journal(store).change(job, JobChanges(metadata={"a": "b"}, priority=Priority.HIGH))
    write_attempt_log(store, job.id, AttemptLog(attempt=1))
    keep_file(store)
    create_key(store, "ada")
    IdempotencyKeys(store).claim("local", "key", "print", job.id)
    note_usage(store, SpentUsage(owner="local", gpu_seconds=1.0, at=utcnow()), job.id)
    store.create(f"done/{12:012d}-{job.id}", b"")
    publish_card(store, CARD, tokenizer=b"{}", sums=b"0  x\n")
    return job


def test_a_sound_store_passes_and_all_of_it_was_read(settings: Settings, store: ArtifactStore) -> None:
    fill(store)
    status, report = check(settings)
    assert (status, report["ok"], report["findings"]) == (0, True, [])
    assert report["jobs"] == 3
    assert report["kept_files"] == 1
    assert report["files"] == 3 * 2 + 5 + 1, "inputs, clips with their motion, the video, the kept file"
    assert report["bytes"] > 4000
    assert report["records"] >= 9


def test_frames_between_clips_may_be_dropped_unless_they_are_kept_or_needed(
    settings: Settings, store: ArtifactStore
) -> None:
    dropped, kept = finish(store), finish(store, keep_motion=True)
    going_on = clip(store, clip(store, start(store, submit(store)), 0), 1)
    for job in (dropped, kept, going_on):
        for number in (0, 1):
            store.remove(f"{job_prefix(job.id)}/motion-{number}.bin")
    assert sorted(wrong(settings)) == sorted(
        [
            ("missing", f"jobs/{kept.id}/motion-0.bin"),
            ("missing", f"jobs/{kept.id}/motion-1.bin"),
            ("missing", f"jobs/{going_on.id}/motion-1.bin"),
        ]
    )


Harm = Callable[[ArtifactStore, Job], tuple[str, str]]


def _torn(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"{job_prefix(job.id)}/video-1.mp4", b"video"[:3])
    return "damaged", key


def _flipped(store: ArtifactStore, job: Job) -> tuple[str, str]:
    key = f"{job_prefix(job.id)}/clip-0.mp4"
    data = store.read(key)
    assert data is not None
    store.write(key, data[:-1] + b"!")
    return "damaged", key


def _lost_input(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.remove(key := f"{job_prefix(job.id)}/inputs/speech.wav")
    return "missing", key


def _lost_entry(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.remove(key := f"{job_prefix(job.id)}/journal/000002.json")
    return "missing", key


def _lost_first_entry(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.remove(key := f"{job_prefix(job.id)}/journal/000000.json")
    return "missing", key


def _torn_entry(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"{job_prefix(job.id)}/journal/000001.json", b'{"type":"started","at')
    return "damaged", key


def _repeated_entry(store: ArtifactStore, job: Job) -> tuple[str, str]:
    first = store.read(f"{job_prefix(job.id)}/journal/000001.json")
    assert first is not None
    store.write(key := f"{job_prefix(job.id)}/journal/000002.json", first)
    return "damaged", key


def _entry_of_tomorrow(store: ArtifactStore, job: Job) -> tuple[str, str]:
    entry = {"type": "paused", "at": utcnow().isoformat()}
    store.create(
        key := f"{job_prefix(job.id)}/journal/{job.sequence + 1:06d}.json", json.dumps(entry).encode()
    )
    return "newer", key


def _torn_changes(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"{job_prefix(job.id)}/changes.json", b"{")
    return "damaged", key


def _lost_kept_file(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.remove(key := f"files/local/{file_id('local', 'image', '0')}/decoded.png")
    return "missing", key


def _torn_kept_record(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"files/local/{file_id('local', 'image', '0')}/file.json", b"\0" * 10)
    return "damaged", key


def _torn_claim(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"idempotency/{'0' * 64}.claim", b"")
    return "damaged", key


def _torn_sums(store: ArtifactStore, job: Job) -> tuple[str, str]:
    store.write(key := f"sums/{'0' * 64}", b"half")
    return "damaged", key


@pytest.mark.parametrize(
    "harm",
    [
        _torn,
        _flipped,
        _lost_input,
        _lost_entry,
        _lost_first_entry,
        _torn_entry,
        _repeated_entry,
        _entry_of_tomorrow,
        _torn_changes,
        _lost_kept_file,
        _torn_kept_record,
        _torn_claim,
        _torn_sums,
    ],
)
def test_each_harm_is_found_and_named_and_nothing_else_is(
    harm: Harm, settings: Settings, store: ArtifactStore
) -> None:
    expected = harm(store, fill(store))
    assert wrong(settings) == [expected]
    shown = runner.invoke(app, ["check", "--data", str(settings.data_dir)], env={"COLUMNS": "300"})
    assert shown.exit_code == 1
    assert expected[1] in shown.stdout
    assert "1 thing is wrong" in shown.stdout


def test_what_a_newer_version_added_what_nobody_names_and_what_is_not_ours_is_told_and_harmless(
    settings: Settings, store: ArtifactStore
) -> None:
    job = fill(store)
    prefix = job_prefix(job.id)
    data = store.read(f"{prefix}/journal/000001.json")
    assert data is not None
    store.write(f"{prefix}/journal/000001.json", json.dumps({**json.loads(data), "mood": "good"}).encode())
    put(store, job.id, "clip-0001-9.mp4")
    store.write(f"{prefix}/journal/notes.txt", b"mine")
    store.write("done/.DS_Store", b"\0")
    store.write("checkpoints/notes.txt", b"mine")
    status, report = check(settings)
    assert (status, report["ok"]) == (0, True)
    assert {(each["kind"], each["key"]) for each in report["findings"]} == {
        ("newer", f"{prefix}/journal/000001.json"),
        ("leftover", f"{prefix}/clip-0001-9.mp4"),
        ("stray", f"{prefix}/journal/notes.txt"),
        ("stray", "done/.DS_Store"),
        ("stray", "checkpoints/notes.txt"),
    }
    (newer,) = (each for each in report["findings"] if each["kind"] == "newer")
    assert "mood" in newer["message"]


def test_trees_in_the_bucket_that_no_pointer_names_are_found(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_bucket(server, monkeypatch)
    monkeypatch.setenv("COINTERACT_STORAGE_URL", f"s3://{BUCKET}/here")
    settings = Settings(data_dir=tmp_path)
    store = open_store(settings)
    job, other = fill(store), submit(store)
    store._objects.put(f"trees/jobs/{job.id}/{'0' * 32}/clip.mp4", b"lost")  # type: ignore[attr-defined]
    store._objects.put("notes.txt", b"mine")  # type: ignore[attr-defined]
    status, report = check(settings)
    assert status == 0
    assert {(each["kind"], each["key"]) for each in report["findings"]} == {
        ("leftover", f"trees/jobs/{job.id}/{'0' * 32}"),
        ("stray", "notes.txt"),
    }
    store._objects.put(f"jobs/{other.id}", b"nowhere")  # type: ignore[attr-defined]
    assert wrong(settings) == [("missing", f"jobs/{other.id}/journal/000000.json")]


def test_a_job_that_is_removed_meanwhile_is_not_missed(
    settings: Settings, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finish(store)
    kept = finish(store)
    digest = type(store).digest

    def digest_late(self: ArtifactStore, key: str) -> tuple[str, int] | None:
        if job.id in key and store.exists(f"{job_prefix(job.id)}/journal/000000.json"):
            Journal(store).remove(job)
        return digest(self, key)

    monkeypatch.setattr(type(store), "digest", digest_late)
    status, report = check(settings)
    assert (status, report["findings"], report["jobs"]) == (0, [], 1)
    assert Journal(store).is_stored(kept.id)


def test_a_store_that_is_not_there_does_not_pass_for_a_sound_one(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = runner.invoke(app, ["check", "--data", str(tmp_path / "typo")])
    assert result.exit_code == 1
    assert "--data" in result.stderr
    assert not (tmp_path / "typo").exists()
    empty_bucket(server, monkeypatch)
    monkeypatch.setenv("COINTERACT_STORAGE_URL", "s3://no-such-bucket/here")
    result = runner.invoke(app, ["check", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "does not answer" in result.stderr


def test_a_pipe_where_a_file_belongs_holds_nobody_up(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = open_store(settings)
    job = finish(store)
    path = settings.storage_dir / job_prefix(job.id) / "video-1.mp4"
    path.unlink()
    os.mkfifo(path)
    assert wrong(settings) == [("damaged", f"{job_prefix(job.id)}/video-1.mp4")]
