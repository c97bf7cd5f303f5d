"""Watching, listing, canceling and deleting jobs, and getting their files."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from contract.entries import Canceled
from contract.job import CancelReason, Priority, Stage, utcnow
from contract.speed import Speed, Work
from contract.worker import LiveProgress, RunningJob, WorkerInfo
from jobs.cards import publish_card
from jobs.journal import IllegalEntry
from jobs.queue import JobQueue
from server.keys import create_key, revoke_key
from server.submit.openai import FIELD_OF_REFERENCE
from tests.server.conftest import CARD, Api, ApiFactory, wait_for
from tests.server.inputs import audio_bytes, form
from tests.server.journals import VIDEO, fail, finish_clip, start, succeed


def submit(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**changes))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def look(api: Api, job_id: str) -> dict[str, Any]:
    answer = api.client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def redis_of(api: Api) -> JobQueue:
    assert api.services.settings.redis_url is not None
    return JobQueue(api.services.settings, api.services.settings.redis_url)


def test_a_waiting_job_shows_its_place_and_when_it_will_be_done(api: Api) -> None:
    first, second = submit(api), submit(api)
    speed = Speed(per_step=100.0, per_clip=0.0)
    worker = WorkerInfo(name="w1", checkpoint="tiny", device="cpu", ready=True, speed=speed)
    redis_of(api).beat(worker)
    redis_of(api).snapshot("tiny", max_age_s=0)
    api.services.hints.snapshot("tiny")

    def estimated(job_id: str) -> dict[str, Any]:
        for _ in range(100):
            job = look(api, job_id)
            if job["estimated_start_at"]:
                return job
            threading.Event().wait(0.05)
        pytest.fail("no estimate")

    one, two = estimated(first["id"]), look(api, second["id"])
    assert (one["queue_position"], two["queue_position"]) == (1, 2)
    assert datetime.fromisoformat(two["estimated_start_at"]) >= datetime.fromisoformat(
        one["estimated_finish_at"]
    )


def test_a_running_job_shows_stage_clip_and_step_as_its_worker_tells(api: Api) -> None:
    job = submit(api, audio=audio_bytes(seconds=7.0))
    start(api, job["id"])
    progress = LiveProgress(attempt=1, stage=Stage.DENOISING, clip=1, num_clips=3, step=2, num_steps=4)
    running = RunningJob(
        job_id=job["id"], attempt=1, owner="local", priority=Priority.NORMAL, cost=1.0, started_at=utcnow(),
        progress=progress,
    )  # fmt: skip
    redis_of(api).beat(WorkerInfo(name="w1", checkpoint="tiny", device="cpu", ready=True, running=running))
    seen = look(api, job["id"])
    assert (seen["status"], seen["stage"], seen["clip"], seen["step"]) == ("processing", "denoising", 1, 2)
    assert seen["progress"] == 50.0
    assert seen["attempts"] == 1
    assert seen["started_at"] is not None


def test_what_a_stale_attempt_tells_is_not_shown(api: Api) -> None:
    job = submit(api)
    start(api, job["id"])
    stale = LiveProgress(attempt=7, stage=Stage.DECODING, clip=0, num_clips=1, step=4, num_steps=4)
    running = RunningJob(
        job_id=job["id"], attempt=7, owner="local", priority=Priority.NORMAL, cost=1.0, started_at=utcnow(),
        progress=stale,
    )  # fmt: skip
    redis_of(api).beat(WorkerInfo(name="w1", checkpoint="tiny", device="cpu", ready=True, running=running))
    assert (look(api, job["id"])["stage"], look(api, job["id"])["progress"]) == ("loading", 0.0)


def test_a_finished_job_tells_everything_about_itself(api: Api) -> None:
    job = submit(api)
    succeed(api, job["id"])
    seen = look(api, job["id"])
    assert (seen["status"], seen["stage"], seen["progress"]) == ("succeeded", "done", 100.0)
    assert seen["urls"]["video"] == f"/v1/jobs/{job['id']}/video"
    assert seen["urls"]["clips"] == [f"/v1/jobs/{job['id']}/clips/0"]
    assert seen["usage"] == {"gpu_seconds": 2.0}
    assert seen["duration_s"] == 1.0
    kept = datetime.fromisoformat(seen["expires_at"]) - datetime.fromisoformat(seen["completed_at"])
    assert kept.total_seconds() == api.services.settings.retention_s


def test_a_failed_job_says_why(api: Api) -> None:
    job = submit(api)
    fail(api, job["id"])
    seen = look(api, job["id"])
    assert seen["status"] == "failed"
    assert seen["error"] == {
        "code": "out_of_memory", "message": "Too large for this GPU.", "stage": "denoising"
    }  # fmt: skip
    video = api.client.get(f"/v1/jobs/{job['id']}/video")
    assert (video.status_code, video.json()["code"]) == (409, "no_result")
    assert video.headers["x-should-retry"] == "false"


def test_jobs_are_listed_newest_first_page_by_page(api: Api) -> None:
    ids = [submit(api)["id"] for _ in range(5)]
    first = api.client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == [ids[4], ids[3]]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[4], ids[3])
    rest = api.client.get("/v1/jobs", params={"limit": 100, "after": first["last_id"]}).json()
    assert [job["id"] for job in rest["data"]] == [ids[2], ids[1], ids[0]]
    assert not rest["has_more"]


def test_jobs_are_listed_by_status_as_of_now(api: Api) -> None:
    queued, done = submit(api), submit(api)
    succeed(api, done["id"])

    def ids(status: str) -> list[str]:
        return [job["id"] for job in api.client.get("/v1/jobs", params={"status": status}).json()["data"]]

    assert (ids("queued"), ids("succeeded"), ids("failed")) == ([queued["id"]], [done["id"]], [])


def test_jobs_are_listed_by_several_states_model_time_and_metadata(api: Api) -> None:
    publish_card(api.store, CARD.model_copy(update={"name": "other", "trained": False}))
    old = submit(api, metadata='{"order": "7", "shop": "a:b"}', model="tiny")["id"]
    canceled = submit(api, metadata='{"order": "7"}', model="other")["id"]
    new = submit(api, model="tiny")["id"]
    api.client.post(f"/v1/jobs/{canceled}/cancel")
    middle = look(api, canceled)["created_at"]

    def ids(**query: Any) -> list[str]:
        answer = api.client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    assert ids(status=["queued", "canceled"]) == [new, canceled, old]
    assert ids(status=["canceled", "failed"]) == [canceled]
    assert ids(model="tiny") == [new, old]
    assert ids(model="other", status="queued") == []
    assert (ids(created_after=middle), ids(created_before=middle)) == ([new], [old])
    assert ids(metadata="order:7") == [canceled, old]
    assert ids(metadata=["order:7", "shop:a:b"]) == [old]
    assert ids(metadata="order:8") == []
    paged = api.client.get("/v1/jobs", params={"metadata": "order:7", "limit": 1}).json()
    assert (paged["has_more"], ids(metadata="order:7", after=paged["last_id"])) == (True, [old])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("created_after=yesterday", "invalid_value"),
        ("created_before=2026-01-01T00:00:00", "invalid_value"),
        ("stat=queued", "unknown_field"),
        ("metadata[order]=7", "unknown_field"),
        ("&".join(["metadata=a:b"] * 17), "too_many"),
    ],
)
def test_a_filter_that_cannot_be_understood_is_refused(api: Api, query: str, code: str) -> None:
    answer = api.client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["field"] == query.partition("=")[0]


def test_a_job_tells_when_it_will_be_canceled_and_that_its_deadline_was_why(api: Api) -> None:
    job = submit(api, cancel_after="60")
    until = datetime.fromisoformat(job["cancel_at"]) - datetime.fromisoformat(job["created_at"])
    assert (until.total_seconds(), job["cancel_reason"]) == (60, None)
    stored = api.services.journal.read(job["id"])
    late = Canceled(at=utcnow(), by="deadline", reason=CancelReason.DEADLINE)
    api.services.journal.append(stored, late)
    assert look(api, job["id"])["cancel_reason"] == "deadline"
    assert "cancel_after" in api.client.get(f"/v1/videos/{job['id']}").json()["error"]["message"]
    asked = submit(api)
    assert (asked["cancel_at"], asked["cancel_reason"]) == (None, None)
    assert api.client.post(f"/v1/jobs/{asked['id']}/cancel").json()["cancel_reason"] == "request"


@pytest.mark.parametrize("seconds", ["4", "2592001", "1.5", "soon"])
def test_a_deadline_that_makes_no_sense_is_refused(api: Api, seconds: str) -> None:
    answer = api.client.post("/v1/generate", files=form(cancel_after=seconds))
    assert (answer.status_code, answer.json()["field"]) == (422, "cancel_after")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "status=weird", f"after={'x' * 65}"])
def test_a_bad_list_query_is_refused_naming_the_parameter(api: Api, query: str) -> None:
    answer = api.client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["field"] == query.partition("=")[0]


def test_cancel_is_final_and_may_be_repeated(api: Api) -> None:
    job = submit(api)
    for _ in range(2):
        answer = api.client.post(job["urls"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    with pytest.raises(IllegalEntry):
        start(api, job["id"])


def test_a_running_job_can_be_canceled_and_keeps_its_clips(api: Api) -> None:
    job = submit(api, audio=audio_bytes(seconds=7.0))
    start(api, job["id"])
    finish_clip(api, job["id"], 0)
    assert api.client.post(job["urls"]["cancel"]).json()["status"] == "canceled"
    clip = api.client.get(f"/v1/jobs/{job['id']}/clips/0")
    assert (clip.status_code, clip.content) == (200, VIDEO[:100])
    assert api.client.get(f"/v1/jobs/{job['id']}/clips/1").status_code == 404


def test_a_finished_job_cannot_be_canceled(api: Api) -> None:
    job = submit(api)
    succeed(api, job["id"])
    answer = api.client.post(job["urls"]["cancel"])
    assert (answer.status_code, answer.json()["code"]) == (409, "job_already_finished")


def test_cancel_against_a_race_of_clips_wins_in_the_end(api: Api) -> None:
    job = submit(api, audio=audio_bytes(seconds=30.0))
    start(api, job["id"])
    over = threading.Event()

    def clips() -> None:
        for clip in range(8):
            try:
                finish_clip(api, job["id"], clip)
            except Exception:  # noqa: BLE001 (the cancel won, which is the point)
                over.set()
                return
        over.set()

    racer = threading.Thread(target=clips)
    racer.start()
    answer = api.client.post(job["urls"]["cancel"])
    racer.join()
    assert answer.json()["status"] == "canceled"
    assert over.is_set()


def test_delete_removes_the_job_with_all_its_files(api: Api) -> None:
    job = submit(api)
    start(api, job["id"])
    answer = api.client.delete(job["urls"]["self"])
    assert answer.json() == {"id": job["id"], "object": "job.deleted", "deleted": True}
    assert api.client.get(job["urls"]["self"]).status_code == 404
    assert api.client.delete(job["urls"]["self"]).status_code == 404
    assert api.leftovers() == []
    assert api.client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("job_id", ["job_" + "0" * 36, "job_x", "..%2f..%2fetc", "job_" + "z" * 36, "%00"])
def test_a_job_that_does_not_exist_is_a_client_error(api: Api, job_id: str) -> None:
    assert api.client.get(f"/v1/jobs/{job_id}").status_code in (404, 422)
    assert api.client.get(f"/v1/jobs/{job_id}/video").status_code in (404, 422)


def test_prefer_wait_holds_the_answer_until_the_job_is_over(api: Api) -> None:
    answers: list[Any] = []

    def ask() -> None:
        answers.append(api.client.post("/v1/generate", files=form(), headers={"Prefer": "wait=30"}))

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(1000):
        if ids := api.store.list_names("jobs"):
            break
        threading.Event().wait(0.02)
    succeed(api, ids[0])
    asking.join(30)
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "succeeded")
    assert answers[0].headers["preference-applied"] == "wait=30"


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/videos"])
@pytest.mark.parametrize("prefer", ["wait", "respond-async, WAIT", "wait=30", 'wait="30"; x=1'])
def test_every_create_waits_and_a_bare_wait_is_as_long_as_the_server_grants(
    api: Api, path: str, prefer: str
) -> None:
    references = {field: reference for reference, field in FIELD_OF_REFERENCE.items()}
    names = references if path == "/v1/videos" else {}
    body = [(names.get(name, name), value) for name, value in form()]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.client.post, path, files=body, headers={"Prefer": prefer})
        wait_for(lambda: bool(api.store.list_names("jobs")), 20)
        succeed(api, api.store.list_names("jobs")[0])
        answer = asked.result(30)
    assert answer.json()["status"] in ("succeeded", "completed")
    granted = 60 if prefer.lower().endswith("wait") else 30
    assert answer.headers["preference-applied"] == f"wait={granted}"


def test_prefer_wait_gives_up_after_its_time(api: Api) -> None:
    answer = api.client.post("/v1/generate", files=form(), headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


# Files


def test_an_unfinished_video_is_409_and_may_be_asked_for_again(api: Api) -> None:
    job = submit(api)
    answer = api.client.get(f"/v1/jobs/{job['id']}/video")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "2")


# Events


def events_of(text: str) -> list[tuple[str | None, str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_a_stream_ends_within_seconds_of_its_keys_revocation(api: Api) -> None:
    key = create_key(api.store, "ada")
    headers = {"Authorization": f"Bearer {key.token}"}
    job = api.client.post("/v1/generate", files=form(), headers=headers).json()["id"]
    began = time.monotonic()
    revoking = threading.Timer(0.5, revoke_key, (api.store, key.key.id))
    revoking.start()
    text = api.client.get(f"/v1/jobs/{job}/events", headers=headers).text
    revoking.join()
    assert next(name for _, name, _ in events_of(text)) == "job.submitted"
    assert not api.services.journal.read(job).state.is_terminal
    assert time.monotonic() - began < 20
    assert api.services.streams.held == 0


def test_events_tell_the_whole_story_in_order(api: Api) -> None:
    job = submit(api)
    succeed(api, job["id"])
    answer = api.client.get(f"/v1/jobs/{job['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    story = events_of(answer.text)
    assert [(number, name) for number, name, _ in story] == [
        ("0", "job.submitted"),
        ("1", "job.started"),
        ("2", "job.clip_finished"),
        ("3", "job.succeeded"),
    ]
    assert [data["status"] for _, _, data in story] == ["queued", "processing", "processing", "succeeded"]
    assert story[2][2]["urls"]["clips"] == [f"/v1/jobs/{job['id']}/clips/0"]


def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(api: Api) -> None:
    job = submit(api)
    succeed(api, job["id"])
    answer = api.client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "1"})
    assert [number for number, _, _ in events_of(answer.text)] == ["2", "3"]
    wrong = api.client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "Last-Event-ID")


def test_an_open_stream_sees_what_happens_meanwhile(api: Api) -> None:
    job = submit(api)
    worker = threading.Timer(0.5, succeed, (api, job["id"]))
    worker.start()
    story = events_of(api.client.get(f"/v1/jobs/{job['id']}/events").text)
    worker.join()
    assert story[-1][1] == "job.succeeded"
    assert any(name == "job.progress" for _, name, _ in story)


def test_a_stream_of_a_deleted_job_ends(api: Api) -> None:
    job = submit(api)
    remover = threading.Timer(0.5, api.services.store.remove_folder, (f"jobs/{job['id']}",))
    remover.start()
    story = events_of(api.client.get(f"/v1/jobs/{job['id']}/events").text)
    remover.join()
    assert story[-1][1] == "job.deleted"


# What there is


def test_models_are_listed_with_their_limits(api: Api) -> None:
    (model,) = api.client.get("/v1/models").json()["data"]
    assert (model["id"], model["trained"], model["default"]) == ("tiny", False, True)
    assert model["sizes"] == ["112x192", "192x112"]
    assert model["note"] == "It draws toys."


def test_the_default_model_is_trained_and_of_those_the_one_for_the_largest_frames(api: Api) -> None:
    for name, trained, max_pixels in (("a-toy", True, 80 * 128), ("real", True, 720 * 1280)):
        card = CARD.model_copy(update={"name": name, "trained": trained, "max_pixels": max_pixels})
        publish_card(api.store, card)
    models = api.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models if model["default"]] == ["real"]


def test_health_readiness_and_metrics(api: Api) -> None:
    assert api.client.get("/healthz").json() == {"status": "ok"}
    waiting = api.client.get("/readyz")
    assert (waiting.status_code, waiting.json()["workers"], waiting.json()["redis"]) == (503, 0, True)
    broken = WorkerInfo(name="w1", checkpoint="tiny", device="cpu", problem="the file is not there")
    redis_of(api).beat(broken)
    failing = api.client.get("/readyz")
    assert (failing.status_code, failing.json()["workers"], failing.json()["failing_workers"]) == (503, 0, 1)
    assert failing.json()["problems"] == ["the file is not there"]
    redis_of(api).beat(broken.model_copy(update={"problem": None, "ready": True}))
    assert api.client.get("/readyz").json() == {
        "ready": True, "redis": True, "storage": True, "workers": 1, "failing_workers": 0, "problems": [],
    }  # fmt: skip
    submit(api)
    text = api.client.get("/metrics").text
    assert 'cointeract_jobs{state="queued"} 1.0' in text
    assert 'route="/v1/generate"' in text
    assert "cointeract_storage_works 1.0" in text


def test_metrics_tell_the_work_that_is_left_so_that_workers_can_be_scaled_by_it(api: Api) -> None:
    job_id = submit(api)["id"]
    waiting = 'checkpoint="tiny",state="queued"'
    text = api.client.get("/metrics").text
    assert f"cointeract_unfinished_jobs{{{waiting}}} 1.0" in text
    assert f"cointeract_remaining_gpu_seconds{{{waiting}}}" not in text, "no worker has measured its speed"
    work = Work.of(api.services.journal.read(job_id).submitted.params)
    speed = Speed(per_step=90 / work.steps, per_clip=30 / work.clips)
    redis_of(api).beat(WorkerInfo(name="w1", checkpoint="tiny", device="cpu", speed=speed))
    wait_for(lambda: f"cointeract_remaining_gpu_seconds{{{waiting}}}" in api.client.get("/metrics").text, 10)
    assert metric(api, f"cointeract_remaining_gpu_seconds{{{waiting}}}") == pytest.approx(120)
    api.client.post(f"/v1/jobs/{job_id}/cancel")
    assert metric(api, f"cointeract_remaining_gpu_seconds{{{waiting}}}") == 0
    assert metric(api, f"cointeract_unfinished_jobs{{{waiting}}}") == 0


def metric(api: Api, series: str) -> float:
    """What /metrics says now."""
    lines = api.client.get("/metrics").text.splitlines()
    (value,) = [line.removeprefix(series) for line in lines if line.startswith(f"{series} ")]
    return float(value)


def test_metrics_count_refusals_by_their_code(api: Api) -> None:
    def refused(code: str) -> float:
        metrics = api.services.metrics
        return metrics.registry.get_sample_value("cointeract_refused_requests_total", {"code": code}) or 0

    codes = ("job_not_found", "missing_field", "misdirected_host")
    before = {code: refused(code) for code in codes}
    api.client.get("/v1/jobs/job_" + 36 * "0")
    assert api.client.post("/v1/generate", files={"prompt": (None, "x")}).status_code == 422
    api.client.get("/healthz", headers={"Host": "evil.example"})
    assert {code: refused(code) - before[code] for code in codes} == dict.fromkeys(codes, 1)


def test_clients_cannot_make_up_labels(api: Api) -> None:
    for name in ("/made/up", "/v1/jobs/made-up", "/v1/made?up=1"):
        api.client.request("MADEUP", name)
        api.client.get(name)
    text = api.client.get("/metrics").text
    assert 'method="other"' in text
    assert "made" not in text.lower()


def test_who_waits_takes_an_event_stream_and_is_answered_at_once_if_none_is_left(
    make_api: ApiFactory,
) -> None:
    api = make_api(max_event_streams=2)
    with ThreadPoolExecutor(2) as pool:

        def ask() -> Future[Any]:
            return pool.submit(api.client.post, "/v1/generate", files=form(), headers={"Prefer": "wait=60"})

        waiting = ask()
        wait_for(lambda: api.services.streams.held == 1, 20)
        (first,) = api.store.list_names("jobs")
        try:
            answer = ask().result(30)
        finally:
            for job in api.store.list_names("jobs"):
                succeed(api, job)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert answer.json()["id"] != first
        assert waiting.result(30).json()["status"] == "succeeded"
    assert api.services.streams.held == 0
