"""Processes die between any two writes, and the disk is full: nobody ever sees half of anything."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.entries import Started, Submitted, Succeeded
from contract.job import InputFiles, JobState, StoredFile, utcnow
from contract.params import GenerationParams
from jobs.artifacts import FolderStore
from jobs.journal import JobNotFound, Journal
from tests.faults.disk import Disk, disk_in
from tests.faults.stack import Stack, eventually
from workers.engines.fake import FakeSettings
from workers.scratch import attempt_folder

pytestmark = pytest.mark.slow

WRITING = {"open", "os.link", "os.rename", "os.mkdir", "os.remove"}
"""Audit events of what changes a disk. fsync has none, but only power cuts tell whether one happened."""

VIDEO = b"a video" * 1000
FILE = StoredFile(name="x", sha256="0" * 64, size=1, media_type="x/x")
SUBMITTED = Submitted(
    at=utcnow(),
    owner="alice",
    checkpoint="fake",
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
        num_clips=1,
        num_frames=80,
    ),
    inputs=InputFiles(person_image=FILE, audio=FILE),
    retention_s=60,
    cost=1,
)


def whole_life(root: Path) -> None:
    """All writes of a job's life: submit, claim, publish, remove."""
    store = FolderStore(root)
    journal = Journal(store)
    folder = store.scratch() / "incoming"
    (folder / "inputs").mkdir(parents=True)
    (folder / "inputs" / "person").write_bytes(b"person" * 1000)
    job = journal.submit("job_1", folder, SUBMITTED)
    job = journal.append(job, Started(at=utcnow(), attempt=1, worker="w"))
    result = store.scratch() / "result"
    result.write_bytes(VIDEO)
    assert store.put_file(result, "jobs/job_1/video-1.mp4")
    video = StoredFile(
        name="video-1.mp4", sha256=hashlib.sha256(VIDEO).hexdigest(), size=len(VIDEO), media_type="x/x"
    )
    journal.append(job, Succeeded(at=utcnow(), attempt=1, video=video, duration_s=3.2, gpu_seconds=1))
    store.remove_folder("jobs/job_1")


def dies_at_write(number: int, work: Callable[[], None]) -> bool:
    """Run `work` in a fork that kills itself before its `number`-th write; False if it has fewer."""
    pid = os.fork()
    if pid == 0:
        remaining = number

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal remaining
            if event in WRITING:
                remaining -= 1
                if remaining < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_write_a_job_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    states: list[JobState | None] = []
    for number in range(200):
        root = tmp_path / str(number)
        died = dies_at_write(number, lambda root=root: whole_life(root))  # type: ignore[misc]
        store = FolderStore(root)
        try:
            job = Journal(store).read("job_1")
        except JobNotFound:
            states.append(None)
        else:
            states.append(job.state)
            person = store.read("jobs/job_1/inputs/person")
            assert person == b"person" * 1000
            if job.state is JobState.SUCCEEDED:
                assert store.read("jobs/job_1/video-1.mp4") == VIDEO
        store.remove_leftovers(time.time() + 1, 0, lambda name: False)
        assert list(store.scratch().iterdir()) == []
        if not died:
            break
        shutil.rmtree(root)
    assert not died
    # Every state was met, in order: nothing, queued, processing, succeeded, removed.
    seen = [state for n, state in enumerate(states) if n == 0 or states[n - 1] != state]
    assert seen == [None, JobState.QUEUED, JobState.PROCESSING, JobState.SUCCEEDED, None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_a_render_waits_for_space_and_then_finishes_in_the_same_attempt(
    tmp_path: Path, small_disk: Path
) -> None:
    stack = Stack.create(tmp_path, FakeSettings(seconds_per_step=0.1, media=False), data_dir=small_disk)
    try:
        stack.start_reaper()
        stack.start_worker()
        job_id = stack.submit(num_clips=3)
        stack.wait_clips(job_id, 1)
        fill(small_disk / "ballast")
        eventually(lambda: "the disk is full" in stack.log(), what="a full disk being noticed")
        job = stack.job(job_id)
        assert job.state is JobState.PROCESSING
        for clip in job.clips:
            stack.content(job_id, clip.video)
        (small_disk / "ballast").unlink()
        job = stack.wait(job_id)
        assert (job.attempt, len(job.clips)) == (1, 3)
        stack.content(job_id, job.video)
    finally:
        stack.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_in(tmp_path / "loop", 64 * 2**20) as disk:
        yield disk


@pytest.mark.timeout(120)
@pytest.mark.parametrize("trouble", ["read-only", "broken"])
def test_an_attempt_waits_for_storage_that_fails_and_then_finishes(
    tmp_path: Path, disk: Disk, trouble: str
) -> None:
    stack = Stack.create(
        tmp_path,
        FakeSettings(seconds_per_step=0.1, media=False),
        data_dir=disk.path / "data",
        stall_timeout_s=3.0,
        max_attempts=1,
    )
    try:
        stack.start_reaper()
        stack.start_worker()
        job_id = stack.submit(num_clips=4)
        stack.wait_clips(job_id, 1)
        disk.read_only() if trouble == "read-only" else disk.fail()
        eventually(lambda: "storage fails" in stack.log(), what="the fault being noticed")
        waited_until = time.monotonic() + 2 * stack.settings.stall_timeout_s
        while time.monotonic() < waited_until:  # longer than a render without progress may take
            assert any(worker.running is not None for worker in stack.queue.workers())
            time.sleep(0.1)
        disk.writable() if trouble == "read-only" else disk.repair()
        job = stack.wait(job_id)
        assert (job.attempt, job.burned_attempts, len(job.clips)) == (1, 0, 4)
        stack.content(job_id, job.video)
    finally:
        stack.close()


def test_a_job_whose_input_cannot_be_read_fails_by_itself_and_the_next_one_runs(tmp_path: Path) -> None:
    stack = Stack.create(tmp_path, FakeSettings(seconds_per_step=0.01, media=True), max_attempts=2)
    try:
        bad, good = stack.submit(), stack.submit(owner="bob")
        speech = stack.path(bad, stack.job(bad).submitted.inputs.audio)
        speech.unlink()
        speech.mkdir()  # every read of it is an error, in a storage that works
        stack.start_reaper()
        stack.start_worker()
        stack.wait(good)
        job = stack.wait(bad, JobState.FAILED)
        assert job.burned_attempts == 1, "the last one fails the job"
    finally:
        stack.close()


@pytest.mark.timeout(120)
def test_the_scratch_folder_of_an_attempt_that_takes_hours_is_left_alone(tmp_path: Path) -> None:
    stack = Stack.create(tmp_path, FakeSettings(seconds_per_step=0.3, media=False))
    try:
        stack.start_worker()
        job_id = stack.submit(num_clips=1, steps=20)
        folder = stack.store.scratch() / attempt_folder(job_id, 1)
        eventually(folder.is_dir, what="the attempt's folder")
        leftover = stack.store.scratch() / attempt_folder(job_id, 7)
        leftover.mkdir()
        began = time.time() - 5 * 3600
        for path in (folder, leftover):
            os.utime(path, (began, began))
        stack.start_reaper()
        eventually(lambda: not leftover.exists(), what="the removal of what nobody works in")
        assert folder.is_dir()
        assert stack.wait(job_id).attempt == 1
    finally:
        stack.close()
