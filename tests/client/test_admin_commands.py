"""`cointeract admin` and draining, against a real service."""

from __future__ import annotations

import time

import pytest
from cointeract_client import Client

from tests.client.conftest import Service
from tests.client.test_commands import cointeract

pytestmark = pytest.mark.slow


def test_a_drained_worker_finishes_its_job_and_takes_no_other_until_it_is_resumed(service: Service) -> None:
    with Client(service.url) as client:
        given = {"person_image": service.person, "audio": service.speech, "prompt": "One."}
        running = client.submit(**given, num_inference_steps=100)
        until = time.monotonic() + 30
        while client.job(running).status == "queued" and time.monotonic() < until:
            time.sleep(0.05)
        (worker,) = client.workers().data
        drained = client.drain(worker.name)
        assert (drained.draining, drained.job is not None and drained.job.id) == (True, running.id)
        again = cointeract(service, "admin", "drain", worker.name)
        assert (again.returncode, "takes no more jobs" in again.stdout) == (0, True), again.stderr
        assert "draining" in cointeract(service, "admin", "workers").stdout
        next_one = client.submit(**given)
        assert client.wait(running, timeout_s=60).status == "succeeded"
        time.sleep(2)
        assert client.job(next_one).status == "queued"
        assert client.queue()[0].data[0].id == next_one.id
        assert next_one.id in cointeract(service, "admin", "queue").stdout
        assert "queued" in cointeract(service, "admin", "owners").stdout
        assert cointeract(service, "admin", "resume", worker.name).returncode == 0
        assert client.wait(next_one, timeout_s=60).status == "succeeded"
        assert client.usage().jobs["succeeded"] >= 2
        assert client.owners()[0].jobs["succeeded"] >= 2
        for job in (running, next_one):
            client.delete(job)
    assert cointeract(service, "admin", "drain", "nobody").returncode == 1
