"""Redis is wiped, killed and away; it is only a hint."""

from __future__ import annotations

import pytest
from redis import Redis

from jobs.tickets import RENDER_NEXT
from tests.faults.conftest import StackFactory
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow


def test_flushall_with_jobs_running_and_waiting_loses_and_doubles_nothing(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.15)
    stack.start_reaper()
    stack.start_worker("first")
    running = stack.submit(num_clips=4)
    waiting = [stack.submit(owner=f"owner-{n}") for n in range(4)]
    stack.wait_clips(running, 1)
    stack.queue.redis.flushall()
    stack.start_worker("second")
    assert stack.wait(running).attempt == 1, "the live attempt was not started twice"
    for job_id in waiting:
        assert stack.wait(job_id).attempt == 1


def test_a_render_goes_on_through_a_redis_outage_of_many_leases_and_its_result_is_recorded(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(seconds_per_step=0.2)
    stack.start_reaper()
    worker = stack.start_worker()
    child = stack.child_of(worker)
    running = stack.submit(num_clips=4)
    waiting = stack.submit()
    stack.wait_clips(running, 1)
    assert stack.redis.process is not None
    stack.redis.process.kill()
    stack.redis.process.wait()
    assert stack.wait(running).attempt == 1, "finished, and recorded, while Redis was away"
    stack.redis.start()
    assert stack.wait(waiting).attempt == 1
    assert stack.child_of(worker) == child, "the model stayed in memory"


def test_a_redis_that_comes_back_empty_after_an_outage_starts_no_live_job_twice(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(seconds_per_step=0.25)
    stack.start_reaper()
    stack.start_worker("first")
    stack.start_worker("second")
    jobs = [stack.submit(num_clips=4, owner=f"owner-{n}") for n in range(2)]
    for job_id in jobs:
        stack.wait_clips(job_id, 1)
    stack.redis.stop()
    for file in (stack.redis.folder).glob("appendonly*"):
        file.unlink()
    stack.redis.start()
    for job_id in jobs:
        assert stack.wait(job_id).attempt == 1


def test_a_frozen_redis_blocks_neither_the_render_nor_the_workers_stop(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.1)
    stack.start_reaper()
    worker = stack.start_worker()
    job_id = stack.submit(num_clips=3)
    stack.wait_clips(job_id, 1)
    assert stack.redis.process is not None
    stack.redis.process.send_signal(19)  # SIGSTOP
    job = stack.wait(job_id)
    assert job.attempt == 1
    stack.redis.process.send_signal(18)  # SIGCONT
    stack.wait(stack.submit())
    worker.terminate()
    assert worker.wait(10) == 0


def test_two_reapers_and_a_killed_one_do_no_harm(make_stack: StackFactory) -> None:
    stack = make_stack(seconds_per_step=0.02)
    reapers = [stack.start_reaper(), stack.start_reaper()]
    stack.start_worker()
    jobs = [stack.submit(announce=n % 2 == 0) for n in range(10)]
    stack.wait(jobs[0])
    reapers[0].kill()
    for job_id in jobs:
        assert stack.wait(job_id).attempt == 1


def test_tickets_that_name_other_functions_or_hold_pickles_run_nothing(make_stack: StackFactory) -> None:
    stack = make_stack()
    trap = stack.folder / "trap"
    stack.start_worker()
    eventually(lambda: stack.queue.workers(), what="a worker")
    plant_tickets(stack.queue.redis, str(trap))
    job = stack.wait(stack.submit())
    assert job.attempt == 1
    eventually(lambda: stack.queue.redis.llen("rq:queue:render.fake") == 0, what="an empty queue")
    assert not trap.exists()


def plant_tickets(redis: Redis, trap: str) -> None:
    """What somebody with write access to Redis would try."""
    from rq import Queue
    from rq.job import Callback
    from rq.serializers import JSONSerializer

    plain = Queue("render.fake", connection=redis)  # pickles
    plain.enqueue("os.system", f"touch {trap}")
    json = Queue("render.fake", connection=redis, serializer=JSONSerializer)
    json.enqueue("os.system", f"touch {trap}")
    json.enqueue(RENDER_NEXT, "fake", on_success=Callback("os.mkdir"))
    job = json.enqueue(RENDER_NEXT, "fake", on_failure=Callback("os.mkdir"))
    redis.hset(job.key, "data", b"not json")
