"""Inputs that nobody would write by hand: mutated files, and requests made up from the OpenAPI document."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from tests.server import fuzz
from tests.server.conftest import Api, Live
from tests.server.inputs import PERSON, SPEECH, form

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", "150"))
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "12"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_mutated_files_are_answered_with_2xx_or_4xx(live: Live) -> None:
    answers = fuzz.run(live, CASES, seed=CASES)
    assert fuzz.bad(answers) == {}
    assert sum(answers.values()) == CASES
    assert len(answers) > 5, "a corpus that is always refused for one reason tests nothing"
    assert live.services.store.list_names("scratch") == []


def operations(live: Live) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    found: list[Any] = list(schema.get_all_operations())
    return [result.ok() for result in found]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_made_from_the_openapi_document_is_a_server_error(
    live: Live, mode: GenerationMode
) -> None:
    tried = [attempt(operation, mode) for operation in operations(live)]
    assert sum(tried) > 5 * EXAMPLES


def attempt(operation: Any, mode: GenerationMode) -> int:
    """Requests made to one route."""
    tried = 0

    @given(example=operation.as_strategy(generation_mode=mode))
    @BOUNDED
    def example_is_answered(example: Any) -> None:
        nonlocal tried
        answer = example.call(timeout=30)
        tried += 1
        allowed = {503} if operation.path == "/readyz" else set()
        assert answer.status_code < 500 or answer.status_code in allowed, (operation.path, answer.content)

    with suppress(Unsatisfiable):  # a route without any input cannot be called wrongly
        example_is_answered()
    return tried


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "prompt",
                "seed",
                "size",
                "width",
                "guidance_scale",
                "fit",
                "metadata",
                "num_clips",
                "model",
                "zzz",
            ]
        ),
        st.one_of(st.text(max_size=50), st.integers().map(str), st.floats().map(str)),
    )
)
@BOUNDED
def test_no_form_is_a_server_error(shared_api: Api, fields: dict[str, str]) -> None:
    named = {name: (None, text.encode("utf-8", "surrogatepass")) for name, text in fields.items()}
    answer = shared_api.client.post("/v1/validate", files=form(**named))
    assert answer.status_code < 500, answer.text


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.sampled_from(["prompt", "seed", "metadata", "audio", "person_image", "fit", "size", "webhook_url"]),
)
@BOUNDED
def test_no_json_is_a_server_error(shared_api: Api, value: Any, field: str) -> None:
    import base64
    import json

    body = {
        "prompt": "a",
        "person_image": "data:image/png;base64," + base64.b64encode(PERSON).decode(),
        "audio": "data:;base64," + base64.b64encode(SPEECH).decode(),
        field: value,
    }
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = shared_api.client.post(
        "/v1/validate", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
