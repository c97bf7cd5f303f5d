from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.health import why_api_is_unhealthy, why_worker_is_unhealthy
from contract.settings import Settings
from contract.worker import WorkerInfo
from deploy.stack import free_port
from jobs.identity import process_name
from jobs.queue import JobQueue
from jobs.redis_server import running_redis


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[tuple[Settings, str, JobQueue]]:
    with running_redis(tmp_path / "redis") as server:
        settings = Settings(data_dir=tmp_path)
        yield settings, server.url, JobQueue(settings, server.url)


def test_a_worker_of_this_host_with_a_loaded_model_is_healthy(queue: tuple[Settings, str, JobQueue]) -> None:
    settings, url, jobs = queue
    assert why_worker_is_unhealthy(settings, url) == "No worker of this host is alive."
    jobs.beat(WorkerInfo(name=process_name("ours"), checkpoint="tiny", device="cpu"))
    assert why_worker_is_unhealthy(settings, url) == "The worker is loading its model."
    jobs.beat(WorkerInfo(name=process_name("ours"), checkpoint="tiny", device="cpu", ready=True))
    assert why_worker_is_unhealthy(settings, url) is None


def test_a_worker_of_another_host_does_not_make_this_one_healthy(
    queue: tuple[Settings, str, JobQueue],
) -> None:
    settings, url, jobs = queue
    jobs.beat(WorkerInfo(name="there.00000000-1-1", checkpoint="tiny", device="cpu", ready=True))
    assert why_worker_is_unhealthy(settings, url) == "No worker of this host is alive."


def test_an_unreachable_redis_or_api_is_told_with_its_address(tmp_path: Path) -> None:
    reason = why_worker_is_unhealthy(Settings(data_dir=tmp_path), f"unix://{tmp_path}/none.sock")
    assert reason is not None
    assert reason.startswith("Redis")
    port = free_port("127.0.0.1")
    reason = why_api_is_unhealthy(Settings(data_dir=tmp_path, port=port))
    assert reason is not None
    assert f"127.0.0.1:{port}" in reason
