"""Form texts and the model of a request say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.form import REPEATABLE, form_of, values_of_form
from contract.request import FieldError, GenerateFields, fields_of

EVERYTHING: dict[str, Any] = {
    "prompt": ["one", "two, with “marks”"],
    "model": "tiny",
    "negative_prompt": "blurry",
    "size": "64x96",
    "width": 64,
    "height": 96,
    "num_inference_steps": 7,
    "guidance_scale": 1e-7,
    "flow_shift": 3.0,
    "product_scale": 0.1,
    "seed": 2**53 - 1,
    "num_clips": 2,
    "fit": "contain",
    "preset": "parity",
    "computed_steps": [0, 3, 6],
    "speech_text": "Good morning.\nHow are you?",
    "voice": "alloy",
    "label": "AI-generated",
    "consent": "Anna signed on 1 May.",
    "audio_face_mask": True,
    "router_maps": True,
    "priority": "high",
    "retention_s": 600,
    "cancel_after": 3600,
    "webhook_url": "https://example.com/hook",
    "webhook_events": ["job.succeeded", "job.failed"],
    "metadata": {"order": "7", "note": '{"a": 1}'},
}


def sent(fields: GenerateFields) -> dict[str, list[str]]:
    """The form as a server gets it: a list of texts for each name."""
    return {name: [text] if isinstance(text, str) else text for name, text in form_of(fields).items()}


def test_the_sample_names_every_field() -> None:
    assert EVERYTHING.keys() == GenerateFields.model_fields.keys()


def test_fields_survive_the_way_through_a_form() -> None:
    fields = fields_of(EVERYTHING)
    assert fields_of(values_of_form(sent(fields))) == fields


def test_what_was_not_set_is_not_sent() -> None:
    assert form_of(fields_of({"prompt": "one", "seed": 3})) == {"prompt": ["one"], "seed": "3"}


def test_an_empty_negative_prompt_stays_one_though_an_empty_text_is_not_given() -> None:
    (text,) = sent(fields_of({"prompt": "one", "negative_prompt": ""}))["negative_prompt"]
    again = fields_of(values_of_form({"prompt": ["one"], "negative_prompt": [text]})).negative_prompt
    assert again is not None
    assert again.strip() == ""
    assert values_of_form({"negative_prompt": [""], "seed": [""]}) == {}


def test_only_fields_that_hold_lists_can_be_repeated() -> None:
    assert set(REPEATABLE) == {"prompt", "computed_steps", "webhook_events"}


@pytest.mark.parametrize("text", ["true", "True"])
def test_a_truth_may_be_written_as_python_writes_it(text: str) -> None:
    assert fields_of(values_of_form({"prompt": ["one"], "audio_face_mask": [text]})).audio_face_mask is True


@pytest.mark.parametrize(
    ("field", "text"),
    [("seed", "1.0"), ("seed", "0x10"), ("flow_shift", "nan"), ("audio_face_mask", "1"), ("size", "64")],
)
def test_a_text_that_is_no_such_value_is_refused_by_name(field: str, text: str) -> None:
    with pytest.raises(FieldError) as caught:
        fields_of(values_of_form({"prompt": ["one"], field: [text]}))
    assert (caught.value.code, caught.value.field) == ("invalid_value", field)


def test_a_text_that_is_no_json_is_refused_by_name() -> None:
    with pytest.raises(FieldError) as caught:
        values_of_form({"metadata": [json.dumps({"a": "b"})[:-1]]})
    assert caught.value.field == "metadata"
