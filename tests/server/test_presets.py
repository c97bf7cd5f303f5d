"""Presets over HTTP: offered by the model, refused where they cannot be, told by the job."""

from __future__ import annotations

from contract.card import Calibration, CheckpointDefaults
from contract.choices import Preset
from jobs.cards import publish_card
from tests.server.conftest import CARD, Api
from tests.server.inputs import form


def test_a_model_lists_the_presets_that_it_offers_and_what_each_computes(api: Api) -> None:
    few = CheckpointDefaults(num_inference_steps=2, guidance_scale=1.0, flow_shift=5.0, negative_prompt="")
    found = {Preset.FAST: Calibration(levels=(1.0, 0.95, 0.8), psnr_db=47.5, lowest_psnr_db=44.0)}
    defaults = CARD.defaults.model_copy(update={"num_inference_steps": 20})
    distilled = {"name": "distilled", "draft": few, "calibration": found, "defaults": defaults}
    publish_card(api.store, CARD.model_copy(update=distilled))
    models = {model["id"]: model["presets"] for model in api.client.get("/v1/models").json()["data"]}
    assert [preset["id"] for preset in models["tiny"]] == ["exact", "balanced", "fast", "parity"]
    offered = {preset.pop("id"): preset for preset in models["distilled"]}
    assert offered["exact"] == {
        "exact": True, "num_inference_steps": 20, "num_computed_steps": 20, "psnr_db": None
    }  # fmt: skip
    assert offered["balanced"]["num_computed_steps"] == 10
    assert offered["fast"]["num_computed_steps"] < 10
    assert (offered["fast"]["exact"], offered["fast"]["psnr_db"]) == (False, 47.5)
    assert offered["draft"]["num_inference_steps"] == offered["draft"]["num_computed_steps"] == 2


def test_a_job_says_its_preset_whether_it_is_exact_and_which_steps_are_computed(api: Api) -> None:
    for path in ("/v1/validate", "/v1/generate"):
        answer = api.client.post(path, files=form(preset="fast", num_inference_steps=20)).json()
        assert answer["exact"] is False
        assert answer["params"]["preset"] == "fast"
        steps = answer["params"]["computed_steps"]
        assert (steps[0], steps[-1]) == (0, 19)
        assert len(steps) <= 20 / 3 + 1
        plain = api.client.post(path, files=form()).json()
        assert (plain["exact"], plain["params"]["computed_steps"]) == (True, None)
    job = api.client.get(f"/v1/jobs/{plain['id']}").json()
    assert job["exact"] is True


def test_a_preset_that_the_checkpoint_does_not_offer_is_refused_before_files_are_decoded(api: Api) -> None:
    answer = api.client.post("/v1/generate", files=form(preset="draft", audio=b"no sound"))
    problem = answer.json()
    assert answer.status_code == 422
    assert (problem["code"], problem["field"]) == ("preset_not_supported", "preset")
    assert "tiny was not: its card has no settings `draft`" in problem["detail"]
    assert "exact, balanced, fast, parity" in problem["detail"]


def test_a_distilled_checkpoint_drafts_in_its_own_steps_unless_the_request_says_others(api: Api) -> None:
    few = CheckpointDefaults(num_inference_steps=2, guidance_scale=1.0, flow_shift=5.0, negative_prompt="")
    publish_card(api.store, CARD.model_copy(update={"name": "distilled", "draft": few}))
    job = api.client.post("/v1/generate", files=form(model="distilled", preset="draft")).json()
    assert job["exact"] is False
    assert job["params"]["preset"] == "draft"
    settings = ("num_inference_steps", "guidance_scale", "flow_shift", "computed_steps")
    assert [job["params"][name] for name in settings] == [2, 1.0, 5.0, None]
    more = form(model="distilled", preset="draft", num_inference_steps=3)
    assert api.client.post("/v1/validate", files=more).json()["params"]["num_inference_steps"] == 3
    plain = api.client.post("/v1/validate", files=form(model="distilled")).json()
    assert plain["params"]["num_inference_steps"] == CARD.defaults.num_inference_steps


def test_a_form_may_name_the_computed_steps(api: Api) -> None:
    fields = form(preset="balanced", num_inference_steps=20, computed_steps=[0, 15, 9, 19])
    answer = api.client.post("/v1/validate", files=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["params"]["computed_steps"] == [0, 9, 15, 19]
