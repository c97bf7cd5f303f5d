"""Redis as operators run it: TLS and a user with the rights of docs/operations.md; a primary that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from jobs.redis_connection import connect
from server.app import create_app
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually
from tests.redis_servers import Operated, Watched, secured, watched
from tests.server.conftest import serving
from tests.server.inputs import audio_bytes, image_bytes

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def documented_rights() -> str:
    """What docs/operations.md says after the name and the password of the user."""
    (line,) = re.findall(r"^ACL SETUSER cointeract on >\S+ ((?:.*\\\n)*.*)$", DOCS.read_text(), re.MULTILINE)
    return str(line).replace("\\\n", " ")


def on(stack: Stack, redis: Operated) -> Stack:
    """The stack with another Redis than its own."""
    stack.redis.stop()
    stack.redis = redis  # type: ignore[assignment]
    return stack


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", timeout=30).status_code == 200


def submit(url: str) -> str:
    files = {"person_image": image_bytes(), "audio": audio_bytes(seconds=5.0)}
    answer = httpx.post(f"{url}/v1/generate", files=files, data={"prompt": "She speaks."}, timeout=60)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_all_parts_work_with_tls_and_the_least_rights(make_stack: StackFactory, tmp_path: Path) -> None:
    with secured(tmp_path / "redis", documented_rights()) as redis:
        stack = on(make_stack(media=True, min_free_bytes=0), redis)
        stack.start_reaper()
        worker = stack.start_worker()
        app = create_app(stack.settings.model_copy(update={"redis_url": redis.url}))
        with serving(app) as api:
            eventually(
                lambda: httpx.get(f"{api.url}/readyz", timeout=30).status_code == 200, 60, "the worker"
            )
            job_id = submit(api.url)
            stack.wait(job_id, timeout_s=60)
            canceled = submit(api.url)
            assert httpx.delete(f"{api.url}/v1/jobs/{canceled}", timeout=30).status_code == 200
            worker.kill()
            worker.wait()
            waiting = submit(api.url)
            assert httpx.get(f"{api.url}/metrics", timeout=30).status_code == 200
            stack.start_worker("second")
            stack.wait(waiting, timeout_s=60)
        asks = redis.servers[0].asks
        refused = [(entry["reason"], entry["object"]) for entry in asks.acl_log()]
        assert refused == [], asks.info("commandstats").keys()


def test_the_documented_user_may_do_nothing_else(tmp_path: Path) -> None:
    with secured(tmp_path / "redis", documented_rights()) as redis:
        client = connect(redis.url)
        client.set("cointeract:epoch", "1")
        for command in (
            "FLUSHALL",
            "CONFIG GET dir",
            "KEYS *",
            "SHUTDOWN",
            "ACL LIST",
            "SET other 1",
            "EVAL x 0",
        ):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path / "watched") as redis:
        yield redis


def fail_over(redis: Watched) -> None:
    """Kill the primary, wait until the other one is it, and start the killed one again."""
    eventually(redis.has_replica, 30, "a replica")
    old, before = redis.primary(), redis.known_primary()
    old.kill()
    eventually(lambda: redis.known_primary() != before, 30, "a new primary")
    eventually(lambda: redis.primary() is not old, 30)
    old.start()


def test_a_failover_in_the_middle_of_work_loses_nothing_and_burns_no_attempt(
    make_stack: StackFactory, failing: Watched
) -> None:
    stack = on(make_stack(media=True, seconds_per_step=0.25, min_free_bytes=0), failing)
    stack.start_reaper()
    worker = stack.start_worker()
    app = create_app(stack.settings.model_copy(update={"redis_url": failing.url}))
    with serving(app) as api:
        eventually(lambda: is_ready(api.url), 60, "the worker")
        running, waiting = submit(api.url), submit(api.url)
        stack.wait_clips(running, 1, timeout_s=60)
        child = stack.child_of(worker)
        for _ in range(2):
            fail_over(failing)
            eventually(lambda: is_ready(api.url), 60, "all parts")
        late = submit(api.url)
        jobs = [stack.wait(job_id, timeout_s=120) for job_id in (running, waiting, late)]
    assert [job.attempt for job in jobs] == [1, 1, 1]
    assert stack.child_of(worker) == child, "the model stayed in memory"


def test_a_server_that_was_made_a_replica_is_left_for_the_one_behind_the_same_address(tmp_path: Path) -> None:
    with watched(tmp_path / "watched") as redis:
        redis.servers[2].kill()
        eventually(redis.has_replica, 30, "a replica")
        first, second = redis.servers[:2]
        port = first.asks.connection_pool.connection_kwargs["port"]
        client = connect(f"redis://127.0.0.1:{port}/0")
        client.set("cointeract:epoch", "1")
        before = client.client_id()
        second.asks.replicaof("NO", "ONE")
        first.asks.replicaof("127.0.0.1", second.asks.connection_pool.connection_kwargs["port"])
        with pytest.raises(RedisConnectionError, match="replica"):
            client.set("cointeract:epoch", "2")  # and once more, at the same address
        assert client.client_id() != before, "it has connected anew"
