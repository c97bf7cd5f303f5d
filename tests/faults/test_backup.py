"""A copy of the storage, taken while jobs are submitted and rendered, is put back elsewhere and goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cli.app import app
from contract.job import JobState
from server.app import create_app
from tests.faults.conftest import StackFactory
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["cp", "tar"])
def test_a_copy_taken_while_everything_runs_is_restored_elsewhere_and_every_job_answers(
    program: str, make_stack: StackFactory, tmp_path: Path
) -> None:
    stack = make_stack(seconds_per_step=0.1)
    stack.start_reaper()
    stack.start_worker("first")
    stack.start_worker("second")
    before = [stack.submit(num_clips=2) for _ in range(4)]
    stack.wait(before[0], timeout_s=60)
    stack.wait_clips(before[1], 1, timeout_s=60)
    done = threading.Event()
    later: list[str] = []

    def submit_on() -> None:
        while not done.is_set():
            later.append(stack.submit(num_clips=1))

    submitting = threading.Thread(target=submit_on)
    submitting.start()
    copy = tmp_path / "copy"
    copy.mkdir()
    if program == "cp":
        subprocess.run(["cp", "-a", str(stack.settings.storage_dir), str(copy)], check=False)
    else:  # as docs/operations.md has it
        made = subprocess.run(
            ["tar", "-C", str(stack.settings.data_dir), "-cf", str(tmp_path / "copy.tar"), "storage"],
            check=False,
        )
        assert made.returncode in (0, 1), "1: a file changed while it was read"
        subprocess.run(["tar", "-C", str(copy), "-xf", str(tmp_path / "copy.tar")], check=True)
    done.set()
    submitting.join()
    stack.close()
    assert shutil.rmtree(stack.settings.data_dir) is None, "the machine is lost"

    elsewhere = make_stack(seconds_per_step=0.01)
    shutil.move(copy / "storage", elsewhere.settings.storage_dir)
    checked = CliRunner().invoke(app, ["check", "--data", str(elsewhere.settings.data_dir)])
    assert checked.exit_code == 0, checked.output
    elsewhere.start_reaper()
    elsewhere.start_worker("third")
    copied = elsewhere.store.list_names("jobs")
    assert set(before) <= set(copied)
    settings = elsewhere.settings.model_copy(update={"redis_url": elsewhere.redis.url, "min_free_bytes": 0})
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for job_id in copied:
            elsewhere.wait(job_id, JobState.SUCCEEDED, timeout_s=120)
            eventually(lambda job_id=job_id: is_told(client, job_id))
            video = client.get(f"/v1/jobs/{job_id}/video")
            stored = elsewhere.job(job_id).video
            assert stored is not None
            assert hashlib.sha256(video.content).hexdigest() == stored.sha256


def is_told(client: TestClient, job_id: str) -> bool:
    return bool(client.get(f"/v1/jobs/{job_id}").json()["status"] == "succeeded")
