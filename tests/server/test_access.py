"""Who may do what: keys, scopes, owners, limits, signed links, foreign sites."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from contract.entries import Started
from contract.job import Priority, utcnow
from contract.network import is_loopback
from contract.speed import Speed
from contract.worker import WorkerInfo
from jobs.queue import JobQueue
from server.access import why_not_to_start
from server.app import StartRefusedError, create_app
from server.keys import KeyLimits, NewKey, Scope, authenticate, create_key, list_keys, revoke_key
from tests.server.conftest import BASE_URL, Api, ApiFactory, make_settings
from tests.server.inputs import audio_bytes, form, image_bytes
from tests.server.journals import VIDEO, finish_clip, start, succeed


def bearer(key: NewKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.token}"}


def submit(api: Api, key: NewKey, **changes: Any) -> Any:
    return api.client.post("/v1/generate", files=form(**changes), headers=bearer(key))


def test_a_key_is_stored_as_a_hash_only(api: Api) -> None:
    key = create_key(api.store, "ada")
    secret = key.token.rsplit("_", 1)[1]
    stored = b"".join((api.store.read(f"keys/{name}") or b"") for name in api.store.list_names("keys"))
    assert secret.encode() not in stored
    assert authenticate(api.store, key.token) == key.key
    assert [known.name for known in list_keys(api.store)] == ["ada"]


@pytest.mark.parametrize(
    "broken", ["", "x", "ck_", "ck_../../x_" + "a" * 43, "ck_" + "a" * 12 + "_" + "b" * 43]
)
def test_a_malformed_key_is_refused(api: Api, broken: str) -> None:
    create_key(api.store, "ada")
    assert authenticate(api.store, broken) is None
    answer = api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {broken}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_wrong_secret_and_a_revoked_key_are_refused(api: Api) -> None:
    key = create_key(api.store, "ada")
    wrong = key.token[:-1] + ("a" if key.token[-1] != "a" else "b")
    assert authenticate(api.store, wrong) is None
    assert revoke_key(api.store, key.key.id)
    assert not revoke_key(api.store, key.key.id)
    assert not revoke_key(api.store, "../../etc")
    assert api.client.get("/v1/jobs", headers=bearer(key)).status_code == 401
    assert api.client.get("/v1/jobs").status_code == 401, "revoking the last key must not open the server"


def test_scopes_are_kept_apart(api: Api) -> None:
    reader = create_key(api.store, "reader", [Scope.READ])
    writer = create_key(api.store, "writer", [Scope.SUBMIT])
    admin = create_key(api.store, "admin", [Scope.ADMIN])
    assert submit(api, reader).json()["code"] == "insufficient_scope"
    job = submit(api, writer).json()
    assert api.client.get("/v1/jobs", headers=bearer(writer)).status_code == 403
    assert api.client.get("/metrics", headers=bearer(reader)).status_code == 403
    assert api.client.get("/metrics", headers=bearer(admin)).status_code == 200
    assert api.client.get(job["urls"]["self"], headers=bearer(admin)).status_code == 200
    seen = api.client.get("/v1/jobs", headers=bearer(admin)).json()["data"]
    assert [entry["id"] for entry in seen] == [job["id"]]


OPEN_ROUTES = {"/healthz", "/readyz", "/v1/examples", "/v1/examples/{name}"}
SHARED_ROUTES = {
    "/v1/models",
    "/v1/limits",
    "/v1/usage",
    "/v1/jobs",
    "/v1/generate",
    "/v1/validate",
    "/metrics",
    "/v1/videos",
    "/v1/videos/sync",
    "/v1/webhooks/secret",
    "/v1/files",
}


def operations(api: Api) -> list[tuple[str, str]]:
    paths = api.client.get("/openapi.json", headers={"Authorization": ""}).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_every_route_of_a_job_hides_it_from_strangers_and_every_route_needs_a_key(api: Api) -> None:
    owner, stranger = create_key(api.store, "owner"), create_key(api.store, "stranger")
    job = submit(api, owner, audio=audio_bytes(seconds=1)).json()
    succeed(api, job["id"])
    kept = api.client.post("/v1/files", files={"file": ("x", image_bytes())}, headers=bearer(owner)).json()
    routes = operations(api)
    assert len(routes) >= 14
    for method, path in routes:
        url = (
            re.sub(r"\{(job_id|video_id)\}", job["id"], path)
            .replace("{clip}", "0")
            .replace("{sequence}", "1")
        )
        url = url.replace("{worker}", "w1").replace("{name}", "person_image").replace("{file_id}", kept["id"])
        assert "{" not in url, f"the matrix does not know how to fill {path}"
        anonymous = api.client.request(method, url)
        if path in OPEN_ROUTES:
            assert anonymous.status_code in (200, 404, 503), (method, path)
            continue
        assert anonymous.status_code == 401, (method, path)
        theirs = api.client.request(method, url, headers=bearer(stranger))
        if path.startswith("/v1/admin/"):
            assert (theirs.status_code, theirs.json()["code"]) == (403, "insufficient_scope"), (method, path)
        elif path in SHARED_ROUTES:
            assert job["id"] not in theirs.text, (method, path)
            assert kept["id"] not in theirs.text, (method, path)
        else:
            assert (theirs.status_code, theirs.json().get("code", theirs.json().get("error", {}))) in (
                (404, "file_not_found" if "{file_id}" in path else "job_not_found"),
                (404, {"message": "There is no such job.", "type": "invalid_request_error", "param": None,
                       "code": "job_not_found"}),
            ), (method, path)  # fmt: skip
            # Exactly what a job that never was looks like.
            unknown = url.replace(job["id"], "job_" + "0" * 36).replace(kept["id"], "file_" + "0" * 36)
            never = api.client.request(method, unknown, headers=bearer(stranger))
            assert (never.status_code, never.content) == (theirs.status_code, theirs.content)
    assert api.client.get(job["urls"]["self"], headers=bearer(owner)).json()["status"] == "succeeded"
    assert api.client.get(f"/v1/files/{kept['id']}", headers=bearer(owner)).status_code == 200


def test_links_can_be_signed_and_expire(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = create_key(api.store, "owner")
    job = submit(api, owner).json()
    succeed(api, job["id"])
    answer = api.client.post(
        f"/v1/jobs/{job['id']}/signed-urls", json={"expires_in": 60}, headers=bearer(owner)
    )
    links = answer.json()
    assert api.client.get(links["video"]).content == VIDEO
    assert api.client.get(links["video"], headers={"Range": "bytes=0-3"}).content == VIDEO[:4]
    every_file = [*links["clips"], *links["posters"], links["thumbnail"], *links["inputs"].values()]
    assert len(every_file) == 6
    for link in every_file:
        assert api.client.get(link).status_code == 200, link
        assert api.client.get(link.partition("?")[0]).status_code == 401, link
    other_file = links["video"].replace("/video?", "/clips/0?")
    longer = re.sub(r"expires=\d+", "expires=99999999999", links["video"])
    for forged in (other_file, longer, links["video"][:-1], links["video"] + "é", longer.split("&")[0]):
        assert api.client.get(forged).status_code in (401, 403), forged
    now = utcnow().timestamp()
    monkeypatch.setattr("server.delivery.signing.time.time", lambda: now + 61)
    assert api.client.get(links["video"]).json()["code"] == "bad_signature"


def test_a_signed_link_to_events_needs_no_key_shows_one_job_and_ends_when_it_expires(api: Api) -> None:
    owner = create_key(api.store, "owner")
    job, other = submit(api, owner).json(), submit(api, owner).json()

    def link(job_id: str, seconds: int) -> str:
        asked = {"expires_in": seconds}
        answer = api.client.post(f"/v1/jobs/{job_id}/signed-urls", json=asked, headers=bearer(owner))
        return str(answer.json()["events"])

    short = api.client.get(link(job["id"], 1))  # ends, although the job does not
    assert short.status_code == 200
    assert f'"id":"{job["id"]}"' in short.text
    assert api.services.streams.held == 0
    long = link(job["id"], 600)
    succeed(api, job["id"])
    assert "event: job.succeeded" in api.client.get(long).text
    assert api.client.get(long, headers={"Last-Event-ID": "99"}).status_code == 204
    for forged in (long.replace(job["id"], other["id"]), long[:-1], long.replace("/events", "/video")):
        assert api.client.get(forged).status_code == 403, forged
    assert api.client.get(f"{job['urls']['events']}?expires=soon", headers=bearer(owner)).status_code == 200


def test_waiting_jobs_of_one_key_are_limited_even_in_a_burst(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(max_queued=3))
    other = create_key(api.store, "bob")
    answers: list[Any] = []
    burst = [threading.Thread(target=lambda: answers.append(submit(api, key))) for _ in range(8)]
    for thread in burst:
        thread.start()
    for thread in burst:
        thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [202] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["code"], refused.json()["limit"]) == ("queued_jobs_limit", 3)
    assert int(refused.headers["retry-after"]) > 0
    assert submit(api, other).status_code == 202


def test_gpu_time_per_day_is_limited_and_deleting_gives_none_back(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(gpu_seconds_per_day=2.0))
    job = submit(api, key).json()
    succeed(api, job["id"])
    api.services.index.refresh()
    assert submit(api, key).json()["code"] == "gpu_seconds_limit"
    assert api.client.delete(job["urls"]["self"], headers=bearer(key)).status_code == 200
    assert submit(api, key).json()["code"] == "gpu_seconds_limit"


def burst(api: Api, key: NewKey, count: int) -> list[int]:
    """The statuses of so many submits at once."""
    with ThreadPoolExecutor(count) as pool:
        return [answer.status_code for answer in pool.map(lambda _: submit(api, key), range(count))]


def test_unfinished_jobs_count_against_gpu_time_in_a_burst_too(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(gpu_seconds_per_day=100.0))
    statuses = burst(api, key, 12)
    assert sorted(set(statuses)) == [202, 429]
    assert statuses.count(202) == 4, "a job of unknown length counts as a quarter of the limit"
    api.services.index.learn_speeds({"tiny": Speed(per_step=1e9, per_clip=0)})
    assert submit(api, key).json()["code"] == "gpu_seconds_limit"

    def is_accepted() -> bool:
        api.services.index.learn_speeds({"tiny": Speed(per_step=1e-9, per_clip=0)})
        return submit(api, key).status_code == 202  # unless the server has just learned from its workers

    assert any(is_accepted() for _ in range(5))


def test_unfinished_jobs_count_against_stored_bytes_in_a_burst_too(api: Api) -> None:
    once = submit(api, create_key(api.store, "probe")).json()["id"]
    (summary,) = (job for job in api.services.index._jobs.values() if job.id == once)
    assert summary.stored_bytes > sum(
        file.stat().st_size for file in (api.store.root / "jobs" / once).rglob("*") if file.is_file()
    )
    key = create_key(api.store, "ada", limits=KeyLimits(max_stored_bytes=int(2.5 * summary.stored_bytes)))
    assert burst(api, key, 12).count(202) == 3


def test_gpu_time_of_the_day_before_does_not_count(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(gpu_seconds_per_day=2.0))
    job = submit(api, key).json()
    start(api, job["id"])
    finish_clip(api, job["id"], 0, gpu_seconds=100.0, at=utcnow() - timedelta(hours=25))
    api.services.index.refresh()
    assert submit(api, key).status_code == 202


def test_stored_bytes_are_limited(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(max_stored_bytes=1000))
    job = submit(api, key).json()
    assert submit(api, key).json()["code"] == "stored_bytes_limit"
    api.client.delete(job["urls"]["self"], headers=bearer(key))
    assert submit(api, key).status_code == 202


def test_a_key_may_not_ask_for_more_priority_than_it_has(api: Api) -> None:
    normal = create_key(api.store, "ada")
    high = create_key(api.store, "vip", highest_priority=Priority.HIGH, limits=KeyLimits(max_running=2))
    refused = submit(api, normal, priority="high")
    assert (refused.status_code, refused.json()["field"], refused.json()["limit"]) == (
        422,
        "priority",
        "normal",
    )
    job = submit(api, high, priority="high").json()
    assert api.services.journal.read(job["id"]).submitted.max_running == 2


def test_a_full_queue_refuses_with_429_and_frees_a_place_when_a_job_ends(make_api: ApiFactory) -> None:
    api = make_api(max_queued_jobs=2)
    jobs = [api.client.post("/v1/generate", files=form()).json() for _ in range(2)]
    refused = api.client.post("/v1/generate", files=form())
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    api.client.post(jobs[0]["urls"]["cancel"])
    assert api.client.post("/v1/generate", files=form()).status_code == 202


def test_a_disk_nearly_full_refuses_new_jobs_before_taking_them_in(make_api: ApiFactory) -> None:
    api = make_api(min_free_bytes=2**60)
    answer = api.client.post("/v1/generate", files=form())
    assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
    assert int(answer.headers["retry-after"]) > 0
    assert api.leftovers() == []
    assert api.client.get("/readyz").json()["storage"] is False
    assert api.client.get("/v1/jobs").status_code == 200


def test_what_is_wrong_with_a_worker_is_told_to_admins_only_because_it_names_files(api: Api) -> None:
    secret = "/srv/checkpoints/x is not there"
    queue = JobQueue(api.services.settings, str(api.services.settings.redis_url))
    queue.beat(WorkerInfo(name="w", checkpoint="tiny", device="cpu", problem=secret))
    queue.tell_troubles("up", {"reaper": f"reaper keeps dying: {secret}"}, 10)
    told = api.client.get("/readyz").json()["problems"]
    assert told == [secret, f"reaper keeps dying: {secret}"], "without keys everybody is an admin"

    user, admin = create_key(api.store, "user"), create_key(api.store, "admin", [Scope.ADMIN])
    for headers in ({}, bearer(user), {"Authorization": "Bearer ck_no_key"}):
        answer = api.client.get("/readyz", headers=headers)
        assert (answer.status_code, answer.json()["problems"]) == (503, [])
        assert "srv" not in answer.text
    assert api.client.get("/readyz", headers=bearer(admin)).json()["problems"] == told
    queue.tell_troubles("up", {}, 10)
    assert api.client.get("/readyz", headers=bearer(admin)).json()["problems"] == [secret]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8:80", True),
        ("localhost:8000", True),
        ("[::1]:8000", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_loopback_names_are_told_from_others(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_without_keys_the_server_does_not_start_on_other_addresses(tmp_path: Any, redis_url: str) -> None:
    settings = make_settings(tmp_path, redis_url, host="0.0.0.0")
    with pytest.raises(StartRefusedError, match="cointeract keys create"), TestClient(create_app(settings)):
        pass
    assert why_not_to_start(settings, keys_exist=True) is None
    assert why_not_to_start(settings.model_copy(update={"allow_anonymous": True}), keys_exist=False) is None


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("keys", [True, False])
def test_only_known_names_for_this_machine_are_answered(
    make_api: ApiFactory, anonymous: bool, keys: bool
) -> None:
    api = make_api(
        allow_anonymous=anonymous, allowed_hosts="api,*.inner.example", public_url="https://video.example.com"
    )
    headers = bearer(create_key(api.store, "ada")) if keys else {}

    def status(host: str, method: str = "GET") -> int:
        return api.client.request(method, "/v1/jobs", headers={**headers, "Host": host}).status_code

    for host in ["evil.example:8000", "evilinner.example", "127.0.0.1.evil.example", "apix", "", "a b"]:
        assert status(host) == 421, host
    for first, second in [("evil.example", "localhost"), ("localhost", "evil.example")]:
        answer = api.client.get("/v1/jobs", headers=[*headers.items(), ("Host", first), ("Host", second)])
        assert answer.status_code == 421, (first, second)
    for host in [
        "localhost:8000",
        "[::1]:8000",
        "192.168.1.5:8000",
        "API:8000",
        "a.inner.example",
        "video.example.com",
    ]:
        assert status(host) == 200, host


def test_urls_begin_with_the_public_one_and_its_page_may_submit(make_api: ApiFactory) -> None:
    api = make_api(public_url="https://video.example.com/")
    answer = api.client.post("/v1/generate", files=form(), headers={"Origin": "https://video.example.com"})
    job = answer.json()
    assert (
        answer.headers["location"] == job["urls"]["self"] == f"https://video.example.com/v1/jobs/{job['id']}"
    )
    succeed(api, job["id"])
    signed = api.client.post(f"/v1/jobs/{job['id']}/signed-urls").json()["video"]
    assert signed.startswith("https://video.example.com/v1/jobs/")
    assert api.client.get(signed.removeprefix("https://video.example.com")).content == VIDEO


def test_pages_of_allowed_origins_may_use_the_server_and_others_may_not(make_api: ApiFactory) -> None:
    shop = "https://shop.example.com"
    api = make_api(allowed_origins=f"{shop}, https://b.example")
    asked = {
        "Origin": shop,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = api.client.options("/v1/generate", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, shop)
    answer = api.client.post("/v1/generate", files=form(), headers={"Origin": shop})
    assert answer.status_code == 202
    assert answer.headers["access-control-allow-origin"] == shop
    assert "Location" in answer.headers["access-control-expose-headers"]
    foreign = api.client.post("/v1/generate", files=form(), headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert "access-control-allow-origin" not in foreign.headers
    job = answer.json()["id"]
    succeed(api, job)
    video = api.client.get(f"/v1/jobs/{job}/video", headers={"Origin": shop})
    assert video.headers["cross-origin-resource-policy"] == "cross-origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
def test_other_web_sites_cannot_make_a_browser_submit(api: Api, origin: str) -> None:
    answer = api.client.post("/v1/generate", files=form(), headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    own = api.client.post("/v1/generate", files=form(), headers={"Origin": BASE_URL})
    assert own.status_code == 202


def test_every_answer_carries_the_security_headers(api: Api) -> None:
    for path in ("/healthz", "/v1/jobs", "/nowhere"):
        headers = api.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def test_log_lines_cannot_be_forged_by_a_path(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.client.get("/v1/jobs/a%0d%0aERROR%20forged")
    assert "\nERROR" not in "\n".join(json.dumps(record.getMessage()) for record in caplog.records)


def test_a_full_queue_refuses_before_it_looks_at_a_file_and_takes_a_job_for_each_that_starts(
    make_api: ApiFactory,
) -> None:
    api = make_api(max_queued_jobs=1)
    first = api.client.post("/v1/generate", files=form()).json()
    answer = api.client.post("/v1/generate", files=form(audio=b"no sound"))
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    # A worker, another process, claims the job: the server finds out by looking.
    journal = api.services.journal
    journal.append(journal.read(first["id"]), Started(at=utcnow(), attempt=1, worker="elsewhere"))
    api.services.index.refresh()
    assert api.client.post("/v1/generate", files=form()).status_code == 202
    assert api.client.post("/v1/generate", files=form()).status_code == 429
