"""Everything at once: two APIs and two workers that share only S3 and a Redis, all of which fail."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from contract.entries import Succeeded
from server.app import create_app
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually
from tests.faults.test_operated_redis import fail_over, on
from tests.redis_servers import Watched, watched
from tests.s3_server import BUCKET, Fault, S3Server, empty_bucket, s3_server
from tests.server.conftest import serving
from tests.server.inputs import audio_bytes, image_bytes

pytestmark = pytest.mark.slow

HARMS: tuple[Fault, ...] = ("500", "503", "reset", "lost answer", "late 500", "torn upload", "cut answer")
JOBS = 5


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        empty_bucket(server, monkeypatch)
        yield server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path / "watched") as operated:
        yield operated


@pytest.fixture
def stack(s3: S3Server, redis: Watched, make_stack: StackFactory) -> Stack:
    made = make_stack(
        seconds_per_step=0.3,
        media=True,
        storage_url=f"s3://{BUCKET}/fleet",
        min_free_bytes=0,
        lease_ttl_s=3.0,
    )
    return on(made, redis)


def submit_until_answered(urls: list[str], key: str) -> str:
    """Submit one job to both servers in turn, as a careful client does. Returns its id."""
    files = {"person_image": image_bytes(), "audio": audio_bytes(seconds=5.0)}
    form = {"prompt": f"She speaks {key}.", "num_inference_steps": "4"}
    for turn in range(60):
        try:
            answer = httpx.post(
                f"{urls[turn % 2]}/v1/generate",
                files=files,
                data=form,
                headers={"Idempotency-Key": key},
                timeout=60,
            )
        except httpx.HTTPError:
            continue
        if answer.status_code in (200, 202):
            return str(answer.json()["id"])
        assert answer.status_code in (429, 503), answer.text
    raise AssertionError(f"{key} was never accepted")


@pytest.mark.timeout(600)
def test_a_fleet_whose_parts_all_fail_loses_and_doubles_nothing(
    stack: Stack, s3: S3Server, redis: Watched, tmp_path: Path
) -> None:
    chance = random.Random(7)
    settings = stack.settings.model_copy(update={"redis_url": redis.url})
    with ExitStack() as running:
        urls = []
        for name in ("api-1", "api-2"):
            app = create_app(settings.model_copy(update={"data_dir": tmp_path / name}))
            urls.append(running.enter_context(serving(app)).url)
        stack.start_reaper()
        workers = [stack.start_worker(name, disk=tmp_path / name) for name in ("worker-1", "worker-2")]
        eventually(lambda: httpx.get(f"{urls[0]}/readyz", timeout=60).status_code == 200, 90, "a worker")

        s3.fault_of = lambda method, path: chance.choice(HARMS) if chance.random() < 0.1 else None
        with ThreadPoolExecutor(2 * JOBS) as clients:  # each job is submitted by two clients at the same time
            keys = [f"job-{number % JOBS}" for number in range(2 * JOBS)]
            accepted = clients.map(lambda key: submit_until_answered(urls, key), keys)
            by_key = {(key, job_id) for key, job_id in zip(keys, accepted, strict=True)}
        assert len(by_key) == JOBS, "one job for each key, whichever server was asked"
        job_ids = sorted(job_id for _, job_id in by_key)

        eventually(lambda: any(stack.job(job_id).clips for job_id in job_ids), 120, "a clip")
        os.kill(stack.child_of(workers[0]), signal.SIGKILL)
        fail_over(redis)
        workers[1].kill()
        workers[1].wait()
        s3.fault_of = lambda method, path: None
        stack.start_worker("worker-3", disk=tmp_path / "worker-3")
        jobs = [stack.wait(job_id, timeout_s=300) for job_id in job_ids]

        assert stack.store.list_names("jobs") == job_ids
        for job in jobs:
            assert sum(isinstance(entry, Succeeded) for entry in stack.entries(job.id)) == 1
            assert job.video is not None
            for url in urls:
                video = httpx.get(f"{url}/v1/jobs/{job.id}/video", timeout=60)
                assert hashlib.sha256(video.content).hexdigest() == job.video.sha256
