"""Redis holds what makes no sense, or keys of another type: it is dropped, and made anew."""

from __future__ import annotations

import json
import random

import pytest
from redis import Redis

from contract.job import Priority, Stage, utcnow
from contract.speed import Speed, Work
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from tests.faults.conftest import StackFactory
from tests.faults.stack import Stack, eventually
from tests.server.conftest import Api, ApiFactory, make_api, redis_url
from tests.server.inputs import form
from workers.reaper import Reaper

__all__ = ["make_api", "redis_url"]

pytestmark = pytest.mark.slow

KEYS = (
    "workers",
    "checkpoints",
    "epoch",
    "waiting:{c}",
    "served:{c}",
    "speed:{c}",
    "worker:w",
)
RECORDS: list[object] = [
    ["a", "normal", "expensive", None, False],
    ["a", "normal", None, None, False],
    ["a", "normal", -1.0, None, False],
    ["a", "urgent", 1.0, None, False],
    [["a"], "normal", 1.0, None, False],
    ["a", "normal", 1.0, "many", False],
    ["a", "normal", 1.0, None],
    {"owner": "a"},
    "a",
    7,
]
BYTES = (b"", b"\xff\xfe", b"NaN", b"1e400", b"-3", b"[" * 5000, b"null", b'{"a":', b"0" * 5000)


def wrong_type(redis: Redis, key: str, kind: str) -> None:
    """Make `key` something of that type."""
    redis.delete(key)
    match kind:
        case "string":
            redis.set(key, b"\xff")
        case "list":
            redis.rpush(key, b"\xff")
        case "set":
            redis.sadd(key, b"\xff")
        case "hash":
            redis.hset(key, mapping={b"\xff": b"\xff"})
        case "zset":
            redis.zadd(key, {b"\xff": 1.0})
        case _:
            redis.xadd(key, {"a": b"\xff"})


def spoil(redis: Redis, checkpoint: str, job_id: str, chance: random.Random) -> None:
    """Senseless content in keys of the right type, and now and then another type."""
    writes = redis.pipeline(transaction=False)
    writes.hset(f"cointeract:waiting:{checkpoint}", b"\xff\xfe", b"[]")
    for number, record in enumerate(RECORDS):
        writes.hset(f"cointeract:waiting:{checkpoint}", f"job_{number}", json.dumps(record))
    writes.hset(f"cointeract:waiting:{checkpoint}", job_id, chance.choice(BYTES))
    writes.zadd(f"cointeract:served:{checkpoint}", dict.fromkeys(BYTES, 9000000000000.0))
    writes.set(f"cointeract:speed:{checkpoint}", chance.choice(BYTES))
    writes.set(f"cointeract:progress:{job_id}", chance.choice(BYTES))
    writes.sadd("cointeract:workers", b"\xff", "w")
    writes.sadd("cointeract:checkpoints", b"\xff\xff")
    writes.set("cointeract:worker:w", chance.choice(BYTES))
    writes.execute(raise_on_error=False)  # a key may still be of another type
    for key in chance.sample(KEYS, 3):
        name = "cointeract:" + key.format(c=checkpoint)
        wrong_type(redis, name, chance.choice(["string", "list", "set", "hash", "zset", "stream"]))


@pytest.mark.parametrize("seed", range(6))
def test_the_api_answers_and_the_reaper_repairs_whatever_lies_in_redis(
    make_api: ApiFactory, redis_url: str, seed: int
) -> None:
    api = make_api()
    first = submit(api)
    redis = Redis.from_url(redis_url)
    spoil(redis, "tiny", first, random.Random(seed))
    second = submit(api)
    answer = api.client.get("/v1/jobs")
    assert [job["id"] for job in answer.json()["data"]] == [second, first]
    assert api.client.get(f"/v1/jobs/{first}").status_code == 200
    reaper = Reaper(api.services.settings, api.store, api.services.hints._queue)

    def waiting() -> list[str]:
        reaper.round()
        return [job.id for job in api.services.hints._queue.snapshot("tiny", max_age_s=0).waiting]

    eventually(lambda: waiting() == [first, second], 10, "the repair")


def submit(api: Api) -> str:
    answer = api.client.post("/v1/generate", files=form())
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_figures_that_nobody_would_call_an_estimate_break_no_answer(make_api: ApiFactory) -> None:
    api = make_api()
    job_id = submit(api)
    queue = api.services.hints._queue
    for speed, cost in ((1e308, 1e308), (1e-300, 1e300), (1e15, 1.0)):
        progress = LiveProgress(attempt=1, stage=Stage.DENOISING, num_clips=0, num_steps=0, step=10**12)
        busy = RunningJob(
            job_id="job_x",
            attempt=1,
            owner="a",
            priority=Priority.LOW,
            cost=cost,
            work=Work(cost, cost),
            started_at=utcnow(),
            progress=progress,
        )
        measured = Speed(per_step=speed, per_clip=speed)
        queue.beat(WorkerInfo(name="w", checkpoint="tiny", device="cpu", running=busy, speed=measured))
        queue._snapshots.clear()
        assert api.client.get(f"/v1/jobs/{job_id}").status_code == 200
        assert api.client.post("/v1/validate", files=form()).status_code == 200


@pytest.mark.timeout(120)
def test_jobs_run_through_a_redis_that_is_spoiled_again_and_again(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.01)
    stack.start_reaper()
    worker = stack.start_worker()
    eventually(lambda: stack.queue.workers(), what="a worker")
    for seed in range(5):
        job_id = stack.submit(num_clips=1, announce=seed % 2 == 0)
        chance = random.Random(seed)
        spoil(stack.queue.redis, "fake", job_id, chance)
        for key in chance.sample(_rq_keys(stack), 2):
            wrong_type(stack.queue.redis, key, chance.choice(["string", "list", "set", "hash", "zset"]))
        assert stack.wait(job_id, timeout_s=40).attempt == 1
    assert worker.poll() is None


def _rq_keys(stack: Stack) -> list[str]:
    queue = stack.queue.tickets("fake")
    return [
        queue.key,
        "rq:queues",
        "rq:workers",
        queue.started_job_registry.key,
        queue.failed_job_registry.key,
    ]
