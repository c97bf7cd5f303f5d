"""What a key sees of its own use, and what admins see of everybody's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from contract.attention import AttentionBackend, AttentionReport
from contract.job import Priority, Stage, utcnow
from contract.memory import MemoryMode
from contract.speed import Speed
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.queue import JobQueue
from server.keys import KeyLimits, NewKey, Scope, create_key, revoke_key
from tests.server.conftest import CARD, Api
from tests.server.inputs import form, image_bytes
from tests.server.journals import fail, finish_clip, start, succeed


def bearer(key: NewKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.token}"}


def submit(api: Api, key: NewKey) -> str:
    answer = api.client.post("/v1/generate", files=form(), headers=bearer(key))
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def get(api: Api, path: str, key: NewKey | None = None) -> Any:
    answer = api.client.get(path, headers=bearer(key) if key else {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def queue_of(api: Api) -> JobQueue:
    return JobQueue(api.services.settings, str(api.services.settings.redis_url))


def test_a_key_sees_what_it_uses_and_nothing_of_others(api: Api) -> None:
    ada, bob = create_key(api.store, "ada"), create_key(api.store, "bob")
    succeed(api, submit(api, ada))
    fail(api, submit(api, ada))
    submit(api, ada)
    old = submit(api, ada)
    start(api, old)
    finish_clip(api, old, 0, gpu_seconds=50.0, at=utcnow() - timedelta(days=2))
    api.client.post("/v1/files", files={"file": ("x", image_bytes())}, headers=bearer(ada))
    mine = get(api, "/v1/usage", ada)
    assert mine["key"] == ada.key.id
    assert mine["jobs"] == {"queued": 1, "processing": 1, "succeeded": 1, "failed": 1, "canceled": 0}
    assert (mine["files"], mine["gpu_seconds_24h"]) == (1, 2.0)
    assert mine["files_bytes"] > 0
    assert mine["stored_bytes"] > 0
    today, before = mine["days"]
    assert (today["submitted"], today["succeeded"], today["failed"], today["gpu_seconds"]) == (4, 1, 1, 2.0)
    assert (before["submitted"], before["gpu_seconds"]) == (0, 50.0)
    theirs = get(api, "/v1/usage", bob)
    assert (theirs["jobs"]["queued"], theirs["files"], theirs["days"]) == (0, 0, [])
    api.client.delete(f"/v1/jobs/{old}", headers=bearer(ada))
    assert get(api, "/v1/usage", ada)["jobs"]["processing"] == 0


def test_without_keys_everybody_sees_the_common_use(api: Api) -> None:
    api.client.post("/v1/generate", files=form())
    assert get(api, "/v1/usage")["jobs"]["queued"] == 1
    (owner,) = get(api, "/v1/admin/owners")["data"]
    assert (owner["key"], owner["name"], owner["jobs"]["queued"]) == ("local", None, 1)


def test_admins_see_every_key_with_its_limits_and_use(api: Api) -> None:
    admin = create_key(api.store, "boss", [Scope.ADMIN])
    ada = create_key(api.store, "ada", limits=KeyLimits(max_queued=3))
    gone = create_key(api.store, "gone")
    submit(api, ada)
    submit(api, gone)
    revoke_key(api.store, gone.key.id)
    owners = {owner["key"]: owner for owner in get(api, "/v1/admin/owners", admin)["data"]}
    assert owners.keys() == {admin.key.id, ada.key.id, gone.key.id}
    assert owners[ada.key.id]["limits"]["max_queued"] == 3
    assert (owners[ada.key.id]["name"], owners[ada.key.id]["jobs"]["queued"]) == ("ada", 1)
    assert owners[gone.key.id]["revoked_at"] is not None
    text = str(owners)
    assert "secret" not in text
    assert all(key.key.secret_sha256 not in text for key in (admin, ada, gone))


def worker(api: Api, name: str, **more: Any) -> WorkerInfo:
    info = WorkerInfo(name=name, checkpoint="tiny", device="cuda:0", ready=True, **more)
    queue_of(api).beat(info)
    return info


def test_admins_see_each_worker_and_what_it_renders(api: Api) -> None:
    job = submit(api, create_key(api.store, "ada"))
    admin = create_key(api.store, "boss", [Scope.ADMIN])
    progress = LiveProgress(attempt=1, stage=Stage.DENOISING, clip=0, num_clips=1, step=2, num_steps=4)
    running = RunningJob(
        job_id=job, attempt=1, owner="ada", priority=Priority.NORMAL, cost=1, started_at=utcnow(),
        progress=progress,
    )  # fmt: skip
    speed = Speed(per_step=1.0, per_clip=10.0, per_job=5.0)
    attention = AttentionReport(backend=AttentionBackend.CUDNN, tokens=1000)
    worker(api, "w1", running=running, speed=speed, attention=attention, memory_mode=MemoryMode.RESIDENT)
    worker(api, "w2", problem="no such checkpoint")
    listed = get(api, "/v1/admin/workers", admin)
    busy, broken = listed["data"]
    assert (busy["name"], busy["attention"], busy["memory_mode"]) == ("w1", "cudnn", "resident")
    assert (busy["job"]["id"], busy["job"]["progress"], busy["job"]["stage"]) == (job, 50.0, "denoising")
    clip = CARD.default_clip
    assert busy["seconds_per_clip"] == round(clip.steps * 1.0 + clip.clips * 10.0, 3)
    assert (broken["problem"], broken["job"], broken["draining"]) == ("no such checkpoint", None, False)
    assert listed["problems"] == ["no such checkpoint"]


def test_admins_see_the_queue_in_the_order_in_which_jobs_start(api: Api) -> None:
    ada, admin = create_key(api.store, "ada"), create_key(api.store, "boss", [Scope.ADMIN])
    jobs = [submit(api, ada) for _ in range(3)]
    worker(api, "w1", speed=Speed(per_step=1.0, per_clip=1.0))
    api.services.hints._queue._snapshots.clear()
    (queue,) = get(api, "/v1/admin/queue", admin)["data"]
    assert (queue["model"], queue["workers"], queue["waiting"], queue["running"]) == ("tiny", 1, 3, 0)
    assert [(each["id"], each["position"], each["owner"]) for each in queue["data"]] == [
        (job, place, ada.key.id) for place, job in enumerate(jobs, start=1)
    ]
    assert queue["data"][1]["estimated_start_at"] >= queue["data"][0]["estimated_finish_at"]


def test_a_drained_worker_may_not_work_until_it_is_resumed(api: Api) -> None:
    admin = create_key(api.store, "boss", [Scope.ADMIN])
    worker(api, "host.1-2-3")
    queue = queue_of(api)
    assert queue.may_work("host.1-2-3")
    path = "/v1/admin/workers/host.1-2-3"
    assert api.client.post(f"{path}/drain", headers=bearer(admin)).json()["draining"] is True
    assert not queue.may_work("host.1-2-3")
    assert get(api, "/v1/admin/workers", admin)["data"][0]["draining"] is True
    assert api.client.post(f"{path}/resume", headers=bearer(admin)).json()["draining"] is False
    assert queue.may_work("host.1-2-3")
    assert not queue.may_work("nobody")
    api.client.post(f"{path}/drain", headers=bearer(admin))
    queue.retire("host.1-2-3")
    assert queue.draining() == set(), "a worker that is gone leaves no mark"
    unknown = api.client.post(f"{path}/drain", headers=bearer(admin))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
