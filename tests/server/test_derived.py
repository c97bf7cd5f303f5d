"""Jobs made from other jobs: retry, extend, redo."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import soundfile

from contract.job import Priority
from contract.video import CLIP_FRAMES
from jobs.journal import job_prefix
from server.keys import KeyLimits, Scope, create_key
from tests.server.conftest import Api, ApiFactory
from tests.server.inputs import audio_bytes, form, samples
from tests.server.journals import VIDEO, fail, finish_clip, start, succeed

pytestmark = pytest.mark.slow

SEVEN_S = {"audio": audio_bytes(seconds=7.0), "prompt": ["one", "two"], "seed": 5}
"""Three clips, the last of them short."""


def submit(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**{**SEVEN_S, **changes}))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def finished(api: Api, **changes: Any) -> dict[str, Any]:
    job = submit(api, **changes)
    succeed(api, job["id"])
    return job


def post(api: Api, path: str, **options: Any) -> dict[str, Any]:
    answer = api.client.post(path, **options)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def redo(api: Api, job: dict[str, Any], clip: int, **changes: Any) -> dict[str, Any]:
    return post(api, f"/v1/jobs/{job['id']}/clips/{clip}/redo", json=changes)


def extend(api: Api, job: dict[str, Any], speech: bytes, *prompts: str) -> dict[str, Any]:
    parts: list[tuple[str, Any]] = [("audio", ("more.wav", speech, "audio/wav"))]
    return post(
        api, f"/v1/jobs/{job['id']}/extend", files=parts + [("prompt", (None, text)) for text in prompts]
    )


def speech_of(api: Api, job: dict[str, Any]) -> tuple[np.ndarray, int]:
    found = soundfile.read(io.BytesIO(api.client.get(f"/v1/jobs/{job['id']}/inputs/audio").content))
    return found[0], found[1]


def clips_of(api: Api, job: dict[str, Any]) -> list[bytes]:
    seen = api.client.get(f"/v1/jobs/{job['id']}").json()
    return [api.client.get(url).content for url in seen["urls"]["clips"]]


# --- retry


def test_a_failed_job_is_tried_again_behind_its_finished_clips(api: Api) -> None:
    job = submit(api, metadata='{"shop": "a"}', priority="low")
    fail(api, job["id"])
    again = post(api, f"/v1/jobs/{job['id']}/retry")
    assert again["id"] != job["id"]
    assert (again["status"], again["parent"], again["urls"]["clips"]) == ("queued", job["id"], [])
    for same in ("params", "metadata", "priority", "seed", "model"):
        assert again[same] == job[same], same

    start(api, again["id"])
    finish_clip(api, again["id"], 0, gpu_seconds=3.0)
    api.client.post(again["urls"]["cancel"])
    third = post(api, f"/v1/jobs/{again['id']}/retry")
    assert len(third["urls"]["clips"]) == 1
    assert third["progress"] == pytest.approx(33.33)
    assert third["usage"] == {"gpu_seconds": 0.0}, "who made the shared clips has paid for them"
    assert clips_of(api, third) == clips_of(api, again)
    start(api, third["id"])
    assert finish_clip(api, third["id"], 1).clips[1].clip == 1


def test_an_unfinished_job_is_not_tried_again(api: Api) -> None:
    answer = api.client.post(f"/v1/jobs/{submit(api)['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")


@pytest.mark.parametrize("body", [{"json": {"seed": 3}}, {"files": [("seed", (None, "3"))]}])
def test_a_retry_changes_nothing(api: Api, body: dict[str, Any]) -> None:
    job = finished(api)
    answer = api.client.post(f"/v1/jobs/{job['id']}/retry", **body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "unknown_field",
        "seed",
    )


# --- redo


@pytest.mark.parametrize(
    ("clip", "changes", "prompts", "seed"),
    [
        (1, {"prompt": "new"}, ["one", "new"], 5),
        (1, {"prompt": ["new", "newer"], "seed": 9}, ["one", "new", "newer"], 9),
        (2, {"prompt": "new"}, ["one", "two", "new"], 5),
        (0, {"prompt": "new"}, ["new", "two"], 5),
        (1, {"seed": 6}, ["one", "two"], 6),
    ],
)
def test_a_redo_keeps_the_clips_before_and_changes_what_is_asked(
    api: Api, clip: int, changes: dict[str, Any], prompts: list[str], seed: int
) -> None:
    job = finished(api)
    made = redo(api, job, clip, **changes)
    assert (made["params"]["prompts"], made["seed"]) == (prompts, seed)
    assert (made["parent"], len(made["urls"]["clips"])) == (job["id"], clip)
    assert clips_of(api, made) == clips_of(api, job)[:clip]
    state = api.services.journal.read(made["id"])
    assert [entry.motion is not None for entry in state.clips] == [True] * clip
    for file in (entry.poster for entry in state.clips):
        assert file is not None
        assert api.store.local_path(f"{job_prefix(made['id'])}/{file.name}").stat().st_size == file.size


def test_a_redo_without_a_change_draws_another_seed(api: Api) -> None:
    job = finished(api)
    for options in ({}, {"json": {}}, {"json": {"seed": -1}}, {"files": [("seed", (None, ""))]}):
        made = post(api, f"/v1/jobs/{job['id']}/clips/1/redo", **options)
        assert made["seed"] != job["seed"]
        assert made["params"]["prompts"] == job["params"]["prompts"]


def test_a_form_says_the_same_as_json(api: Api) -> None:
    job = finished(api)
    parts = [("prompt", (None, "new")), ("prompt", (None, "newer")), ("seed", (None, "7"))]
    made = post(api, f"/v1/jobs/{job['id']}/clips/1/redo", files=parts)
    assert (made["params"]["prompts"], made["seed"]) == (["one", "new", "newer"], 7)


def test_a_clip_of_a_running_job_can_be_redone_once_those_before_are_finished(api: Api) -> None:
    job = submit(api)
    path = f"/v1/jobs/{job['id']}/clips/1/redo"
    assert api.client.post(path).json()["code"] == "job_not_finished"
    start(api, job["id"])
    finish_clip(api, job["id"], 0)
    assert len(post(api, path)["urls"]["clips"]) == 1
    assert len(redo(api, job, 0)["urls"]["clips"]) == 0


@pytest.mark.parametrize(
    ("clip", "changes", "code", "field"),
    [
        (3, {}, "not_found", None),
        (1, {"prompt": " "}, "invalid_value", "prompt"),
        (1, {"prompt": []}, "missing_field", "prompt"),
        (1, {"prompt": "x" * 5000}, "too_long", "prompt"),
        (1, {"prompt": ["x"] * 101}, "too_many", "prompt"),
        (1, {"seed": "7"}, "invalid_value", "seed"),
        (1, {"steps": 7}, "unknown_field", "steps"),
        (1, {"audio": "data:,x"}, "unknown_field", "audio"),
    ],
)
def test_a_bad_redo_is_refused_by_its_field_and_leaves_nothing(
    api: Api, clip: int, changes: dict[str, Any], code: str, field: str | None
) -> None:
    job = finished(api)
    before = api.leftovers()
    answer = api.client.post(f"/v1/jobs/{job['id']}/clips/{clip}/redo", json=changes)
    assert (answer.json()["code"], answer.json().get("field")) == (code, field)
    assert api.leftovers() == before


# --- extend


def test_an_extension_puts_more_speech_behind_and_goes_on_from_the_last_whole_clip(api: Api) -> None:
    job = finished(api)
    made = extend(api, job, audio_bytes(seconds=4.0), "three", "four")
    assert (made["parent"], made["num_clips"], made["params"]["num_frames"]) == (job["id"], 4, 275)
    assert len(made["urls"]["clips"]) == 2, "the third was cut short by the end of the speech"
    assert made["params"]["prompts"] == ["one", "two", "three", "four"]
    assert made["seed"] == job["seed"]
    old, rate = speech_of(api, job)
    new, _ = speech_of(api, made)
    assert (rate, len(new)) == (16_000, 11 * 16_000)
    assert np.array_equal(new[: len(old)], old), "to the last bit, as the shared clips were made from it"


def test_an_extension_of_whole_clips_renders_none_of_them_again(api: Api) -> None:
    job = finished(api, audio=audio_bytes(seconds=6.4))
    made = extend(api, job, audio_bytes(seconds=1.0))
    assert (len(made["urls"]["clips"]), made["num_clips"]) == (2, 3)
    assert made["params"]["prompts"] == ["one", "two"]


@pytest.mark.parametrize(
    ("rate", "channels", "kind"), [(44_100, 2, "WAV"), (8_000, 1, "WAV"), (22_050, 1, "FLAC")]
)
def test_added_speech_takes_on_the_rate_and_channels_of_the_first(
    api: Api, rate: int, channels: int, kind: str
) -> None:
    job = finished(api, audio=audio_bytes(seconds=3.2, rate=24_000))
    made = extend(api, job, audio_bytes(kind, seconds=2.0, rate=rate, channels=channels))
    sound, now = speech_of(api, made)
    assert (now, sound.ndim, len(sound)) == (24_000, 1, round(5.2 * 24_000))
    tone = samples(2.0, 24_000)[:, 0] * (1.0 if channels == 1 else 0.75)
    assert np.abs(sound[-len(tone) :] - tone)[1000:-1000].max() < 0.02


def test_the_added_speech_may_be_a_kept_file_or_a_url(api: Api) -> None:
    job = finished(api, audio=audio_bytes(seconds=3.2))
    kept = api.client.post("/v1/files", files={"file": ("a.wav", audio_bytes(seconds=1.0))}).json()["id"]
    data = "data:audio/wav;base64," + base64.b64encode(audio_bytes(seconds=1.0)).decode()
    for body in ({"json": {"audio": kept}}, {"files": [("audio", (None, kept))]}, {"json": {"audio": data}}):
        made = post(api, f"/v1/jobs/{job['id']}/extend", **body)
        sound, rate = speech_of(api, made)
        assert len(sound) == round(4.2 * rate)
    api.client.delete(f"/v1/files/{kept}")
    answer = api.client.post(f"/v1/jobs/{job['id']}/extend", json={"audio": kept})
    assert (answer.json()["code"], answer.json()["field"]) == ("unknown_file", "audio")


def test_the_manifest_names_the_seeds_and_files_that_a_job_was_made_with(api: Api) -> None:
    job = finished(api)
    made = redo(api, job, 2, seed=100)
    manifest = api.client.get(f"/v1/jobs/{made['id']}/manifest").json()
    assert [(clip["seed"], clip["attempt"]) for clip in manifest["clips"]] == [(5, 0), (6, 0)]
    assert manifest["inputs"] == api.client.get(f"/v1/jobs/{job['id']}/manifest").json()["inputs"]
    longer = extend(api, job, audio_bytes())
    inputs = api.client.get(f"/v1/jobs/{longer['id']}/manifest").json()["inputs"]
    assert inputs["audio"]["received_sha256"] is None, "it was put together from two"
    assert inputs["person_image"]["received_sha256"] is not None


def test_speech_that_the_video_left_out_stays_out(api: Api) -> None:
    job = finished(api, audio=audio_bytes("FLAC", seconds=7.0, subtype="PCM_24"), num_clips=1)
    made = extend(api, job, audio_bytes(seconds=1.0))
    sound, rate = speech_of(api, made)
    assert len(sound) == 4.2 * rate
    assert (made["params"]["num_frames"], len(made["urls"]["clips"])) == (105, 1)


@pytest.mark.parametrize(
    ("speech", "code", "field"),
    [
        (b"", "empty_file", "audio"),
        (b"no sound at all", "unsupported_media_type", "audio"),
        (audio_bytes(seconds=0.05), "audio_too_short", "audio"),
        (audio_bytes(seconds=5.0), "audio_too_long", "audio"),
        (None, "missing_field", "audio"),
    ],
)
def test_bad_speech_is_refused_and_leaves_nothing(
    make_api: ApiFactory, speech: bytes | None, code: str, field: str
) -> None:
    api = make_api(max_audio_seconds=10.0)
    job = finished(api)
    before = api.leftovers()
    parts = [("prompt", (None, "x"))] + ([] if speech is None else [("audio", ("a.wav", speech))])  # type: ignore[list-item]
    answer = api.client.post(f"/v1/jobs/{job['id']}/extend", files=parts)
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)
    assert api.leftovers() == before


def test_only_a_video_can_be_extended(api: Api) -> None:
    running, failed = submit(api), submit(api)
    fail(api, failed["id"])
    parts = [("audio", ("a.wav", audio_bytes()))]
    for job, code in ((running, "job_not_finished"), (failed, "no_result")):
        answer = api.client.post(f"/v1/jobs/{job['id']}/extend", files=parts)
        assert (answer.status_code, answer.json()["code"]) == (409, code)


# --- what holds for all


def test_deleting_the_parent_leaves_the_child_whole_and_they_share_the_space(api: Api) -> None:
    job = finished(api)
    made = redo(api, job, 2)
    folder = api.store.root / "jobs" / made["id"]
    shared = [path for path in folder.rglob("*") if path.is_file() and "journal" not in path.parts]
    assert len(shared) == 4 + 2 * 4 + 1
    assert all(path.stat().st_nlink == 2 for path in shared)
    clips, inputs = clips_of(api, made), made["urls"]["inputs"]
    api.client.delete(f"/v1/jobs/{job['id']}")
    assert clips_of(api, made) == clips
    assert all(api.client.get(url).status_code == 200 for url in inputs.values())
    assert api.client.get(f"/v1/jobs/{made['id']}").json()["parent"] == job["id"]
    start(api, made["id"])
    assert len(finish_clip(api, made["id"], 2).clips) == 3
    again = redo(api, made, 1)
    assert clips_of(api, again) == clips[:1]


def test_the_same_key_makes_one_job_and_another_request_under_it_is_refused(api: Api) -> None:
    job = finished(api)
    headers = {"Idempotency-Key": "k"}
    path = f"/v1/jobs/{job['id']}/clips/1/redo"
    first = api.client.post(path, json={"prompt": "new"}, headers=headers)
    again = api.client.post(path, json={"prompt": "new"}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    others = (
        (path, {"prompt": "newer"}),
        (path.replace("/1/", "/2/"), {"prompt": "new"}),
        (f"/v1/jobs/{job['id']}/retry", {}),
        (f"/v1/jobs/{finished(api)['id']}/clips/1/redo", {"prompt": "new"}),
    )
    for other, body in others:
        answer = api.client.post(other, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused"), other
    assert len(api.store.list_names("jobs")) == 3


def test_limits_of_the_key_hold_for_every_new_job(api: Api) -> None:
    key = create_key(api.store, "ada", limits=KeyLimits(max_queued=1))
    bearer = {"Authorization": f"Bearer {key.token}"}
    job = api.client.post("/v1/generate", files=form(**SEVEN_S), headers=bearer).json()
    succeed(api, job["id"])
    api.services.index.refresh()
    assert api.client.post(f"/v1/jobs/{job['id']}/clips/1/redo", headers=bearer).status_code == 202
    for path in ("retry", "extend", "clips/0/redo"):
        answer = api.client.post(f"/v1/jobs/{job['id']}/{path}", headers=bearer)
        assert (answer.status_code, answer.json()["code"]) == (429, "queued_jobs_limit"), path
    reader = create_key(api.store, "bob", [Scope.READ])
    for path in ("retry", "extend", "clips/0/redo"):
        answer = api.client.post(
            f"/v1/jobs/{job['id']}/{path}", headers={"Authorization": f"Bearer {reader.token}"}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope"), path


def test_a_job_made_by_an_admin_is_the_admins_and_has_no_more_priority_than_allowed(api: Api) -> None:
    owner = create_key(api.store, "ada", highest_priority=Priority.HIGH)
    admin = create_key(api.store, "root", [Scope.ADMIN])
    job = api.client.post(
        "/v1/generate",
        files=form(**SEVEN_S, priority="high"),
        headers={"Authorization": f"Bearer {owner.token}"},
    ).json()
    succeed(api, job["id"])
    made = post(api, f"/v1/jobs/{job['id']}/clips/1/redo", headers={"Authorization": f"Bearer {admin.token}"})
    state = api.services.journal.read(made["id"])
    assert (state.submitted.owner, state.submitted.priority) == (admin.key.id, Priority.NORMAL)


def test_what_shared_and_kept_files_take_is_counted(api: Api) -> None:
    job = finished(api)
    made = redo(api, job, 2)
    start(api, made["id"])
    finish_clip(api, made["id"], 2)
    api.client.post(made["urls"]["cancel"])
    api.services.index.refresh()
    for one in (job, made):
        folder = api.store.root / "jobs" / one["id"]
        files = [path for path in folder.rglob("*") if path.is_file() and "journal" not in path.parts]
        assert api.services.index._jobs[one["id"]].stored_bytes == sum(path.stat().st_size for path in files)


def test_without_kept_frames_a_job_can_only_be_redone_from_clip_0(make_api: ApiFactory) -> None:
    api = make_api(keep_motion=False)
    job = finished(api)
    for clip in range(3):
        api.store.remove(f"{job_prefix(job['id'])}/motion-{clip}.bin")  # as the worker does
    answers = [
        api.client.post(f"/v1/jobs/{job['id']}/clips/1/redo"),
        api.client.post(f"/v1/jobs/{job['id']}/extend", files=[("audio", ("a.wav", audio_bytes()))]),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (409, "motion_not_kept")
        assert "COINTERACT_KEEP_MOTION" in answer.json()["detail"]
        assert answer.headers["x-should-retry"] == "false"
    assert redo(api, job, 0)["urls"]["clips"] == []
    again = post(api, f"/v1/jobs/{job['id']}/retry")
    assert len(again["urls"]["clips"]) == 3, "all clips are there: nothing need continue"
    assert api.services.journal.read(again["id"]).clips[2].motion is None


def test_a_job_whose_checkpoint_is_gone_is_refused(api: Api) -> None:
    job = finished(api)
    for name in api.store.list_names("checkpoints"):
        api.store.remove(f"checkpoints/{name}")
    answer = api.client.post(f"/v1/jobs/{job['id']}/clips/1/redo")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_checkpoint")


def test_a_redo_or_an_extension_leaves_the_old_video_as_it_was(api: Api) -> None:
    job = finished(api)
    redo(api, job, 1)
    extend(api, job, audio_bytes())
    assert api.client.get(f"/v1/jobs/{job['id']}/video").content == VIDEO
    assert api.client.get(f"/v1/jobs/{job['id']}").json()["params"]["num_frames"] < 3 * CLIP_FRAMES
