"""The power goes. A disk of our own, an ext4 image, is copied as it is on the device at that moment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from contract.job import JobState
from jobs.artifacts import FolderStore
from jobs.journal import Journal
from jobs.redis_server import RedisServer
from server.idempotency import IdempotencyKeys
from tests.faults.conftest import StackFactory
from tests.faults.disk import Disk, disk_in
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_in(tmp_path / "loop") as disk:
        yield disk


def commit(disk: Disk) -> None:
    """Make the file system write its own journal, as it does every few seconds: names without their data."""
    with (disk.path / "other").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())


def test_a_claim_that_outlives_a_power_cut_has_its_data(disk: Disk) -> None:
    keys = IdempotencyKeys(FolderStore(disk.path))
    keys.claim("ada", "k1", "fingerprint", "job_1")
    commit(disk)
    after = IdempotencyKeys(FolderStore(disk.after_power_cut()))
    path = after.store.local_path(keys.claim_key("ada", "k1"))
    assert path.stat().st_size > 0
    assert after.claim("ada", "k1", "fingerprint", "job_2") == "job_1"


@pytest.mark.timeout(240)
def test_no_accepted_job_is_lost_when_the_power_goes_while_jobs_come_and_run(
    disk: Disk, make_stack: StackFactory
) -> None:
    stack = make_stack(seconds_per_step=0.02, data_dir=disk.path / "data")
    stack.start_reaper()
    stack.start_worker()
    accepted: list[str] = []
    full = threading.Event()

    def submit() -> None:
        while not full.is_set():
            accepted.append(stack.submit(num_clips=1))

    submitting = threading.Thread(target=submit)
    submitting.start()
    try:
        for number in range(4):
            wanted = 8 * (number + 1)
            eventually(lambda: len(accepted) >= wanted, 30)  # noqa: B023
            known = list(accepted)
            ended = {job_id: stack.job(job_id) for job_id in known if stack.job(job_id).state.is_terminal}
            after = FolderStore(disk.after_power_cut(f"cut-{number}") / "data" / "storage")
            journal = Journal(after)
            for job_id in known:
                job = journal.read(job_id)
                inputs = job.submitted.inputs
                for file in (inputs.person_image, inputs.audio):
                    assert after.local_path(f"jobs/{job_id}/{file.name}").stat().st_size == file.size
                if job_id in ended:
                    assert job.state is ended[job_id].state is JobState.SUCCEEDED
                    assert job.video is not None
                    assert (
                        after.local_path(f"jobs/{job_id}/{job.video.name}").stat().st_size == job.video.size
                    )
    finally:
        full.set()
        submitting.join()


@pytest.mark.timeout(240)
def test_a_stack_goes_on_from_what_a_power_cut_has_left_of_its_redis(
    disk: Disk, make_stack: StackFactory, tmp_path: Path
) -> None:
    stack = make_stack(data_dir=disk.path / "data")
    jobs = [stack.submit() for _ in range(5)]
    redis = RedisServer(disk.path / "redis")
    redis.start()
    for number in range(200):
        Redis.from_url(redis.url).set(f"key-{number}", "x" * 2000)
    commit(disk)
    left = disk.after_power_cut()
    redis.stop()
    after = make_stack(data_dir=left / "data")
    after.redis.stop()
    after.redis = RedisServer(left / "redis")
    after.redis.start()
    after.start_reaper()
    after.start_worker()
    for job_id in jobs:
        after.wait(job_id)
