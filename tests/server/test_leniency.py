"""What real clients send and mean: forms with empty fields, nulls, settings sent back, misspelt names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from contract.job import Priority
from deploy.samples import BUNDLED_CHECKPOINT
from jobs.cards import publish_card
from server.keys import create_key
from tests.server.conftest import CARD, Api
from tests.server.inputs import PERSON, SPEECH, audio_bytes, form
from tests.server.journals import fail, succeed
from tests.server.test_submit import as_json


def refusal(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def submit(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**changes))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_what_a_browsers_form_leaves_open_is_not_given(api: Api) -> None:
    empty = dict.fromkeys(("seed", "size", "negative_prompt", "metadata", "fit", "webhook_url"), (None, ""))
    files = [
        ("person_image", ("p.png", PERSON)),
        ("audio", ("s.wav", SPEECH)),
        ("prompt", (None, "x")),
        *empty.items(),
    ]
    # As Chromium and Firefox send a file input without a file; httpx leaves an empty file name out.
    request = api.client.build_request("POST", "/v1/generate", files=files)
    kind = request.headers["content-type"]
    head = f"--{kind.partition('boundary=')[2]}\r\nContent-Disposition: form-data; "
    parts = [
        f'{head}name="{name}"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n\r\n'
        for name in ("product_image", "pose_video")
    ]
    body = "".join(parts).encode() + request.read()
    answer = api.client.post("/v1/generate", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 202, answer.text
    assert answer.json()["params"]["negative_prompt"] == "blurry"
    named = [*files[:3], ("product_image", ("product.png", b""))]
    assert (
        refusal(api.client.post("/v1/generate", files=named), 422, "empty_file")["field"] == "product_image"
    )
    nobody = [("person_image", ("", b"")), *files[1:3]]
    assert (
        refusal(api.client.post("/v1/generate", files=nobody), 422, "missing_field")["field"]
        == "person_image"
    )


def test_null_is_the_same_as_not_given(api: Api) -> None:
    body = as_json(product_image=None, pose_video=None, seed=None, preset=None, metadata=None, fit=None)
    answer = api.client.post("/v1/generate", json=body)
    assert answer.status_code == 202, answer.text
    refused = refusal(api.client.post("/v1/generate", json=as_json(person_image=None)), 422, "missing_field")
    assert refused["field"] == "person_image"


@pytest.mark.parametrize("wire", ["form", "json"])
def test_a_jobs_params_can_be_sent_back_as_they_are(api: Api, wire: str) -> None:
    speech = audio_bytes(seconds=7)
    first = submit(
        api, audio=speech, prompt=["one", "two"], size="192x112", fit="contain", num_inference_steps=3
    )
    if wire == "form":
        files = [each for each in form(audio=speech) if each[0] != "prompt"]
        files.append(("params", (None, json.dumps(first["params"]))))
        answer = api.client.post("/v1/generate", files=files)
    else:
        body = {name: value for name, value in as_json().items() if name != "prompt"}
        answer = api.client.post("/v1/generate", json={**body, "params": first["params"]})
    assert answer.status_code == 202, answer.text
    again = answer.json()["params"]
    if wire == "json":  # its speech is shorter
        first["params"] |= {"num_clips": 1, "num_frames": again["num_frames"]}
    assert again == first["params"]
    changed = api.client.post(
        "/v1/generate", json={**as_json(prompt="other", seed=3), "params": first["params"]}
    )
    params = changed.json()["params"]
    assert (params["prompts"], params["seed"], params["num_inference_steps"]) == (["other"], 3, 3)
    wrong = {**as_json(), "params": {"sed": 3}}
    assert (
        "'params.seed'"
        in refusal(api.client.post("/v1/generate", json=wrong), 422, "unknown_field")["detail"]
    )


def test_seed_minus_one_is_a_random_one(api: Api) -> None:
    seeds = {submit(api, seed=-1)["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert min(seeds) >= 0
    assert refusal(api.client.post("/v1/generate", files=form(seed=-2)), 422, "out_of_range")["limit"] == -1


def test_a_key_for_low_priority_need_not_say_so(api: Api) -> None:
    low = create_key(api.store, "batch", highest_priority=Priority.LOW)
    headers = {"Authorization": f"Bearer {low.token}"}
    answer = api.client.post("/v1/generate", files=form(), headers=headers)
    assert (answer.status_code, answer.json()["priority"]) == (202, "low")
    assert api.client.post("/v1/validate", files=form(), headers=headers).status_code == 200
    refused = api.client.post("/v1/generate", files=form(priority="normal"), headers=headers)
    assert refusal(refused, 422, "out_of_range")["limit"] == "low"


@pytest.mark.parametrize(
    ("changes", "field", "limit"),
    [
        ({"metadata": json.dumps({"k" * 65: "v"})}, "metadata", 64),
        ({"metadata": json.dumps({"k": "v" * 513})}, "metadata.k", 512),
        ({"model": "m" * 65}, "model", 64),
        ({"webhook_url": "https://example.com/" + "x" * 2048}, "webhook_url", 2048),
    ],
)
def test_a_text_that_is_too_long_is_measured_in_characters(
    api: Api, changes: dict[str, str], field: str, limit: int
) -> None:
    problem = refusal(api.client.post("/v1/generate", files=form(**changes)), 422, "too_long")
    assert problem["field"].startswith(field)
    assert problem["limit"] == limit
    assert "item" not in problem["detail"]


def test_unknown_names_suggest_the_nearest_known_one(api: Api) -> None:
    for answer in (
        api.client.post("/v1/generate", files=form(negativ_prompt="x")),
        api.client.post("/v1/generate", json=as_json(negativ_prompt="x")),
        api.client.post("/v1/videos", json={"prompt": "x", "negativ_prompt": "x"}),
    ):
        body = answer.json().get("error") or answer.json()
        assert body["code"] == "unknown_field"
        assert "'negative_prompt'" in (body.get("detail") or body["message"])
    hopeless = refusal(api.client.post("/v1/generate", files=form(zzzz="x")), 422, "unknown_field")
    assert "mean" not in hopeless["detail"]


@pytest.mark.parametrize(
    "path", ["/v1/jobs?stauts=failed", "/v1/models?x=1", "/v1/videos?limt=3", "/v1/jobs/job_x?token=1"]
)
def test_unknown_query_parameters_are_refused(api: Api, path: str) -> None:
    answer = api.client.get(path)
    assert answer.status_code == 422, answer.text
    body = answer.json().get("error") or answer.json()
    assert body["code"] == "unknown_field"


@pytest.mark.parametrize("job_id", ["x", "job_", "job_" + "z" * 36, "job_" + "0" * 35, "0" * 40])
def test_a_malformed_job_id_is_not_found(api: Api, job_id: str) -> None:
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/video", f"/v1/jobs/{job_id}/events"):
        refusal(api.client.get(path), 404, "job_not_found")
    assert api.client.get(f"/v1/videos/{job_id}").json()["error"]["code"] == "job_not_found"
    refusal(api.client.delete(f"/v1/jobs/{job_id}"), 404, "job_not_found")


def test_numbers_out_of_range_in_query_and_body_name_their_limit(api: Api) -> None:
    problem = refusal(api.client.get("/v1/jobs?limit=0"), 422, "out_of_range")
    assert (problem["field"], problem["limit"]) == ("limit", 1)
    job = submit(api)
    answer = api.client.post(f"/v1/jobs/{job['id']}/signed-urls", json={"expires_in": 0})
    problem = refusal(answer, 422, "out_of_range")
    assert (problem["field"], problem["limit"]) == ("expires_in", 1)


def test_there_is_one_largest_number_of_steps(api: Api) -> None:
    most = api.services.settings.max_steps
    for steps in (most + 1, 1001, 10**15):
        problem = refusal(
            api.client.post("/v1/generate", files=form(num_inference_steps=steps)), 422, "out_of_range"
        )
        assert problem["limit"] == most


def test_prompts_beyond_the_last_clip_are_noted(api: Api) -> None:
    job = submit(api, prompt=["one", "two", "three"])
    assert [(warning["code"], warning["field"]) for warning in job["warnings"]] == [
        ("prompts_unused", "prompt")
    ]
    found = api.client.post("/v1/validate", files=form(prompt=["one", "two"])).json()
    assert "1 clip" in found["warnings"][0]["message"]
    assert submit(api, prompt=["one"])["warnings"] == []


def test_a_prompt_that_the_model_does_not_read_to_its_end_is_noted(api: Api) -> None:
    tokenizer = (BUNDLED_CHECKPOINT / "tokenizer" / "tokenizer.json").read_bytes()
    publish_card(api.store, CARD, tokenizer)
    counted = Tokenizer.from_buffer(tokenizer)
    fits = "she lifts the can. " * 100
    while len(counted.encode(fits).ids) > 512:
        fits = fits[:-5]
    assert len(fits) > 512  # in bytes, so that it is counted at all
    too_long = fits + " she lifts the can."
    job = submit(api, prompt=[fits, too_long], negative_prompt=too_long, audio=audio_bytes(seconds=7))
    assert [(warning["code"], warning["field"]) for warning in job["warnings"]] == [
        ("prompt_cut", "prompt"),
        ("prompt_cut", "negative_prompt"),
    ]


def test_a_canceled_job_was_canceled(api: Api) -> None:
    job = submit(api)
    canceled = api.client.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert (canceled["status"], canceled["stage"]) == ("canceled", "canceled")
    detail = refusal(api.client.get(f"/v1/jobs/{job['id']}/video"), 409, "no_result")["detail"]
    assert "was canceled" in detail
    failed = submit(api)["id"]
    fail(api, failed)
    detail = refusal(api.client.post(f"/v1/jobs/{failed}/cancel"), 409, "job_already_finished")["detail"]
    assert "has failed" in detail


def test_an_event_source_that_has_seen_the_end_is_told_to_stop(api: Api) -> None:
    job = submit(api)["id"]
    succeed(api, job)
    with api.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        ids = [line.removeprefix("id: ") for line in stream.iter_lines() if line.startswith("id: ")]
    again = api.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": ids[-1]})
    assert (again.status_code, again.content) == (204, b"")


def test_a_body_of_another_kind_is_told_what_to_send(api: Api) -> None:
    for path in ("/v1/generate", "/v1/videos"):
        answer = api.client.post(path, content=b"hello", headers={"Content-Type": "text/plain"})
        body = answer.json().get("error") or answer.json()
        assert (answer.status_code, body["code"]) == (415, "unsupported_content_type")


def test_bracket_keys_of_any_depth_get_the_types_of_the_fields(api: Api) -> None:
    audio = as_json()["audio"]
    texts = [
        ("prompt", "She lifts it."),
        ("num_inference_steps", "3"),
        ("audio_reference[audio_url][url]", audio),
        ("extra_params[prompt][]", "one"),
        ("extra_params[prompt][]", "two"),
        ("extra_params[product_scale]", "0.5"),
        ("extra_params[audio_face_mask]", "true"),
        ("extra_params[metadata][order]", "7"),
    ]
    files = [("input_reference", ("p.png", PERSON)), *((name, (None, text)) for name, text in texts)]
    answer = api.client.post("/v1/videos", files=files)
    assert answer.status_code == 200, answer.text
    submitted = api.services.journal.read(answer.json()["id"]).submitted
    assert (submitted.params.prompts, submitted.params.product_scale) == (("one", "two"), 0.5)
    assert (submitted.params.num_inference_steps, submitted.params.audio_face_mask) == (3, True)
    assert submitted.metadata == {"order": "7"}
    for name in ("extra_params", "extra_params[metadata][order][deeper]", "extra_params[product_scale]"):
        broken = api.client.post("/v1/videos", files=[*files, (name, (None, "{}"))])
        assert broken.status_code == 422, broken.text
