"""Files that are sent once and named in many submits."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import soundfile

from contract.job import utcnow
from jobs.kept_files import LINGERS_S, KeptFile, KeptFiles
from server.app import _forget_old
from server.keys import KeyLimits, NewKey, create_key
from tests.server.conftest import Api, ApiFactory
from tests.server.inputs import audio_bytes, form, image_bytes

PERSON = image_bytes("JPEG", (80, 120))
SPEECH = audio_bytes(seconds=2.0)


def keep(api: Api, data: bytes, key: NewKey | None = None, **fields: str) -> Any:
    headers = {"Authorization": f"Bearer {key.token}"} if key else {}
    files = [("file", ("../../x", data)), *((name, (None, value)) for name, value in fields.items())]
    return api.client.post("/v1/files", files=files, headers=headers)


def kept(api: Api, data: bytes, key: NewKey | None = None, **fields: str) -> dict[str, Any]:
    answer = keep(api, data, key, **fields)
    assert answer.status_code in (200, 201), answer.text
    file: dict[str, Any] = answer.json()
    return file


def inputs(api: Api, job_id: str) -> dict[str, str]:
    stored = api.services.journal.read(job_id).submitted.inputs
    return {name: getattr(stored, name).sha256 for name in ("person_image", "audio")}


def test_a_file_is_sent_once_and_named_in_forms_json_and_openais_shape(api: Api) -> None:
    person, speech = kept(api, PERSON), kept(api, SPEECH)
    assert (person["kind"], person["format"], person["width"], person["height"]) == (
        "image", "image/jpeg", 80, 120
    )  # fmt: skip
    assert (speech["kind"], speech["seconds"]) == ("audio", 2.0)
    assert person["sha256"] == hashlib.sha256(PERSON).hexdigest()
    sent = api.client.post("/v1/generate", files=form(person_image=PERSON, audio=SPEECH)).json()
    named = [
        api.client.post("/v1/generate", files=form(person_image=person["id"], audio=speech["id"])),
        api.client.post(
            "/v1/generate", json={"prompt": "x", "person_image": person["id"], "audio": speech["id"]}
        ),
        api.client.post(
            "/v1/videos",
            json={"prompt": "x", "input_reference": person["id"], "audio_reference": {"url": speech["id"]}},
        ),
        api.client.post(
            "/v1/videos",
            data={"prompt": "x", "input_reference": person["id"], "audio_reference": speech["id"]},
            files={"image_reference": ("p.png", image_bytes())},
        ),
    ]
    for answer in named:
        assert answer.status_code in (200, 202), answer.text
        job_id = answer.json()["id"]
        assert inputs(api, job_id) == inputs(api, sent["id"])
        manifest = api.client.get(f"/v1/jobs/{job_id}/manifest").json()
        assert manifest["inputs"]["audio"]["received_sha256"] == hashlib.sha256(SPEECH).hexdigest()
        assert manifest["params"]["num_frames"] == sent["params"]["num_frames"]
        assert api.client.get(f"/v1/jobs/{job_id}/thumbnail").status_code == 200
    assert api.store.list_names("scratch") == []


def test_a_named_file_is_not_decoded_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    person, speech = kept(api, PERSON)["id"], kept(api, SPEECH)["id"]

    async def decode(tasks: Any, tenant: str) -> Any:
        raise AssertionError("decoded again")

    monkeypatch.setattr(api.services.sandbox, "decode", decode)
    answer = api.client.post(
        "/v1/generate", files=form(person_image=person, audio=speech, product_image=None)
    )
    assert answer.status_code == 202, answer.text


def test_the_same_content_is_kept_once_and_longer_and_sending_or_naming_it_is_the_same_request(
    api: Api,
) -> None:
    first = kept(api, PERSON)
    again = keep(api, PERSON)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert again.json()["expires_at"] > first["expires_at"]
    assert again.json()["created_at"] == first["created_at"]
    assert kept(api, image_bytes("JPEG", (80, 121)))["id"] != first["id"]
    key = {"Idempotency-Key": "one"}
    sent = api.client.post("/v1/generate", files=form(person_image=PERSON), headers=key)
    named = api.client.post("/v1/generate", files=form(person_image=first["id"]), headers=key)
    assert (named.status_code, named.json()["id"]) == (202, sent.json()["id"])
    assert named.headers["idempotency-replayed"] == "true"


def test_a_warning_names_the_field_in_which_the_file_is_used(api: Api) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, [0.0] * 16_000, 16_000, format="WAV")
    silent = kept(api, buffer.getvalue())["id"]
    job = api.client.post("/v1/generate", files=form(audio=silent)).json()
    assert [(warning["code"], warning["field"]) for warning in job["warnings"]] == [
        ("speech_silent", "audio")
    ]


def test_jobs_keep_their_inputs_when_the_file_is_deleted(api: Api) -> None:
    person = kept(api, PERSON)["id"]
    job = api.client.post("/v1/generate", files=form(person_image=person)).json()
    before = api.client.get(f"/v1/jobs/{job['id']}/inputs/person_image")
    assert api.client.get(f"/v1/files/{person}/content").content == before.content
    assert api.client.delete(f"/v1/files/{person}").json() == {
        "id": person, "object": "file.deleted", "deleted": True
    }  # fmt: skip
    assert api.client.get(f"/v1/jobs/{job['id']}/inputs/person_image").content == before.content
    for path in (f"/v1/files/{person}", f"/v1/files/{person}/content"):
        answer = api.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")
    refused = api.client.post("/v1/generate", files=form(person_image=person))
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        422, "unknown_file", "person_image"
    )  # fmt: skip


def expire(api: Api, file_id: str, seconds_ago: float = 1.0) -> None:
    stored = KeptFiles(api.store).get("local", file_id, utcnow())
    late = stored.model_copy(update={"expires_at": utcnow() - timedelta(seconds=seconds_ago)})
    KeptFiles(api.store).keep_on(late)


def test_files_expire_and_are_removed_an_hour_later(api: Api) -> None:
    just, long_ago = kept(api, PERSON)["id"], kept(api, SPEECH)["id"]
    expire(api, just)
    expire(api, long_ago, LINGERS_S + 1)
    assert api.client.get("/v1/files").json()["data"] == []
    assert api.client.post("/v1/generate", files=form(person_image=just)).status_code == 422
    _forget_old(api.services)
    assert api.store.list_names("files/local") == [just]


def test_a_file_may_expire_while_a_submit_uses_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    person, decode = kept(api, PERSON)["id"], api.services.sandbox.decode

    async def slowly(tasks: Any, tenant: str) -> Any:
        expire(api, person)
        _forget_old(api.services)
        return await decode(tasks, tenant)

    monkeypatch.setattr(api.services.sandbox, "decode", slowly)
    answer = api.client.post("/v1/generate", files=form(person_image=person))
    assert answer.status_code == 202, answer.text


def test_a_file_that_has_expired_is_kept_anew(api: Api) -> None:
    first = kept(api, PERSON)
    expire(api, first["id"])
    again = keep(api, PERSON)
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.json()["created_at"] > first["created_at"]
    assert api.client.get(f"/v1/files/{first['id']}/content").status_code == 200
    assert api.store.list_names("scratch") == []


@pytest.mark.parametrize(
    ("data", "fields", "code", "field"),
    [
        (b"", {}, "empty_file", "file"),
        (b"hello", {}, "unsupported_media_type", "file"),
        (PERSON, {"kind": "audio"}, "unsupported_media_type", "file"),
        (PERSON, {"kind": "picture"}, "invalid_value", "kind"),
        (PERSON, {"purpose": "user_data"}, "unknown_field", "purpose"),
        (PERSON[:400], {}, "truncated_file", "file"),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(
    api: Api, data: bytes, fields: dict[str, str], code: str, field: str
) -> None:
    answer = keep(api, data, **fields)
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)
    assert api.store.list_names("scratch") == []
    assert api.client.get("/v1/files").json()["data"] == []


def test_what_is_no_file_in_a_form_is_refused(api: Api) -> None:
    speech = kept(api, SPEECH)["id"]
    for given, code in (("hello", "invalid_value"), ("file_x", "invalid_value"), (speech, "unknown_file")):
        answer = api.client.post("/v1/generate", files=form(person_image=given))
        assert (answer.status_code, answer.json()["code"]) == (422, code), given
    twice = api.client.post("/v1/generate", files=[*form(), ("person_image", (None, "file_" + "0" * 36))])
    assert twice.json()["code"] == "duplicate_field"
    assert api.client.post("/v1/files", json={"file": "x"}).status_code == 415
    assert api.client.post("/v1/files", files=[("kind", (None, "image"))]).json()["code"] == "missing_field"


def test_a_key_sees_and_uses_only_its_own_files(api: Api) -> None:
    ada, bob = create_key(api.store, "ada"), create_key(api.store, "bob")
    adas = kept(api, PERSON, ada)["id"]
    bobs = kept(api, PERSON, bob)["id"]
    assert adas != bobs, "equal content of another key must not show"
    headers = {"Authorization": f"Bearer {bob.token}"}
    assert [file["id"] for file in api.client.get("/v1/files", headers=headers).json()["data"]] == [bobs]
    theirs = api.client.post("/v1/generate", files=form(person_image=adas), headers=headers)
    assert (theirs.status_code, theirs.json()["code"]) == (422, "unknown_file")
    assert api.client.delete(f"/v1/files/{adas}", headers=headers).status_code == 404


def test_files_have_a_quota_even_in_a_burst(make_api: ApiFactory) -> None:
    api = make_api(max_files=3)
    pictures = [image_bytes(size=(64, 64 + number)) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: keep(api, data), pictures))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 5
    refused = next(answer for answer in answers if answer.status_code == 429).json()
    assert (refused["code"], refused["limit"]) == ("files_limit", 3)
    known = next(data for data, answer in zip(pictures, answers, strict=True) if answer.status_code == 201)
    assert keep(api, known).status_code == 200, "what is kept already takes no more space"


def test_bytes_of_files_are_limited_by_server_and_by_key(make_api: ApiFactory) -> None:
    api = make_api(max_files_bytes=30_000)
    assert keep(api, image_bytes(size=(64, 64))).status_code == 201
    assert keep(api, audio_bytes(seconds=5.0)).json()["code"] == "files_limit"
    tight = create_key(api.store, "ada", limits=KeyLimits(max_stored_bytes=10_000))
    assert keep(api, audio_bytes(seconds=0.9), tight).json()["code"] == "stored_bytes_limit"


def test_a_file_deleted_while_it_is_used_is_a_clear_refusal_or_a_whole_job(api: Api) -> None:
    for _ in range(5):
        person = kept(api, PERSON)["id"]
        with ThreadPoolExecutor(1) as pool:
            using = pool.submit(api.client.post, "/v1/generate", files=form(person_image=person))
            api.client.delete(f"/v1/files/{person}")
            answer = using.result()
        assert answer.status_code == 202 or answer.json()["code"] == "unknown_file", answer.text
        if answer.status_code == 202:
            path = f"/v1/jobs/{answer.json()['id']}/inputs/person_image"
            assert api.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/files", "/v1/usage"])
def test_many_lists_of_one_key_are_made_a_few_at_a_time(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    kept(api, PERSON)
    made, at_once, most = KeptFiles.of, 0, 0
    lock = threading.Lock()

    def slow(files: KeptFiles, owner: str, now: datetime) -> list[KeptFile]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return made(files, owner, now)

    monkeypatch.setattr(KeptFiles, "of", slow)
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: api.client.get(path), range(24)))
    assert [answer.status_code for answer in answers] == [200] * 24
    assert most <= 2, "else one key takes every thread, and others wait for seconds"
