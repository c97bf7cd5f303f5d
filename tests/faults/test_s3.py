"""Machines with disks of their own, which share nothing but Redis and a store in S3."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contract.entries import Interrupted
from server.app import create_app
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually
from tests.s3_server import BUCKET, S3Server, empty_bucket, s3_server
from tests.server.conftest import serving
from tests.server.inputs import audio_bytes, image_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        empty_bucket(server, monkeypatch)
        yield server


@pytest.fixture
def stack(s3: S3Server, make_stack: StackFactory) -> Stack:
    return make_stack(
        seconds_per_step=0.2,
        media=True,
        storage_url=f"s3://{BUCKET}/fleet",
        min_free_bytes=0,
        lease_ttl_s=3.0,
    )


def machine(stack: Stack, disk: Path, **more: object) -> object:
    """The application on a machine that has this data folder."""
    settings = {"data_dir": disk, "redis_url": stack.redis.url, **more}
    return create_app(stack.settings.model_copy(update=settings))


def test_a_job_of_a_killed_machine_goes_on_from_its_last_clip_on_another(
    stack: Stack, tmp_path: Path
) -> None:
    disks = [tmp_path / f"disk-{name}" for name in ("api-1", "api-2", "worker-1", "worker-2")]
    stack.start_reaper()
    first = stack.start_worker("first", disk=disks[2])
    with serving(machine(stack, disks[0])) as one, serving(machine(stack, disks[1])) as other:  # type: ignore[arg-type]
        eventually(
            lambda: httpx.get(f"{one.url}/readyz", timeout=60).status_code == 200, 60, "the first worker"
        )
        files = {"person_image": image_bytes(), "audio": audio_bytes(seconds=9.0)}
        form = {"prompt": "She speaks.", "num_inference_steps": "4"}
        answer = httpx.post(f"{one.url}/v1/generate", files=files, data=form, timeout=60)
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        clip = stack.wait_clips(job_id, 1, timeout_s=120).clips[0]
        os.kill(stack.child_of(first), signal.SIGKILL)
        first.kill()
        first.wait()
        stack.start_worker("second", disk=disks[3])
        job = stack.wait(job_id, timeout_s=180)

        assert job.clips[0] == clip
        assert {clip.attempt for clip in job.clips} == {1, job.attempt}
        assert any(isinstance(entry, Interrupted) for entry in stack.entries(job_id))
        assert job.video is not None
        eventually(
            lambda: httpx.get(f"{other.url}/v1/jobs/{job_id}", timeout=60).json()["status"] == "succeeded"
        )
        for api in (one, other):
            video = httpx.get(f"{api.url}/v1/jobs/{job_id}/video", timeout=60)
            assert hashlib.sha256(video.content).hexdigest() == job.video.sha256
            part = httpx.get(
                f"{api.url}/v1/jobs/{job_id}/video", headers={"Range": "bytes=10-19"}, timeout=60
            )
            assert (part.status_code, part.content) == (206, video.content[10:20])
            preview = httpx.get(f"{api.url}/v1/jobs/{job_id}/preview.mp4", timeout=60)
            assert preview.status_code == 200
        retried = httpx.post(f"{other.url}/v1/jobs/{job_id}/retry", json={}, timeout=60)
        assert retried.status_code == 202, retried.text
        assert httpx.delete(f"{one.url}/v1/jobs/{job_id}", timeout=60).is_success
        eventually(lambda: httpx.get(f"{other.url}/v1/jobs/{job_id}", timeout=60).status_code == 404)
        again = stack.wait(retried.json()["id"], timeout_s=60)
        assert again.clips[0].video.sha256 == clip.video.sha256, "its files outlive those that it shares"
        stack.content(again.id, again.video)
    for disk in disks:
        assert sorted(path.name for path in disk.iterdir()) == ["s3"], "everything else is in the bucket"


def test_clients_are_sent_to_s3_for_files_if_that_is_set(stack: Stack, s3: S3Server, tmp_path: Path) -> None:
    job_id = stack.submit()
    with serving(machine(stack, tmp_path / "api", storage_redirects=True)) as api:  # type: ignore[arg-type]
        address = f"{api.url}/v1/jobs/{job_id}/inputs/person_image"
        eventually(lambda: httpx.get(address, timeout=60).status_code != 404, what="the job")
        sent = httpx.get(address, timeout=60)
        assert sent.status_code == 302
        assert sent.headers["location"].startswith(s3.url)
        found = httpx.get(address, follow_redirects=True, timeout=60)
        assert found.headers["content-type"] == "image/png"
        stored = stack.job(job_id).submitted.inputs.person_image
        assert hashlib.sha256(found.content).hexdigest() == stored.sha256
        assert httpx.head(address, timeout=60).headers["content-length"] == str(stored.size)


def test_jobs_survive_a_store_that_fails_now_and_then(stack: Stack, s3: S3Server, tmp_path: Path) -> None:
    requests = iter(range(10**9))
    harms = ("503", "lost answer", "reset", "late 500")
    stack.start_reaper()
    stack.start_worker("first", disk=tmp_path / "worker")
    job_id = stack.submit(num_clips=3)
    stack.wait_clips(job_id, 1, timeout_s=120)
    s3.fault_of = lambda method, path: harms[number // 7 % 4] if (number := next(requests)) % 7 == 0 else None
    before = len(s3.requests)
    eventually(lambda: len(s3.requests) > before + 150, 120, "some harm")
    s3.fault_of = lambda method, path: None
    job = stack.wait(job_id, timeout_s=120)
    assert [clip.clip for clip in job.clips] == [0, 1, 2]
    stack.content(job_id, job.video)
    assert job.burned_attempts == 0
