"""`speech_text` instead of audio, made by a local server that speaks OpenAI's API for speech."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from server.submit.openai import FIELD_OF_REFERENCE
from tests.server.conftest import Api, ApiFactory
from tests.server.inputs import audio_bytes, form

pytestmark = pytest.mark.slow

KEY = "sk-very-secret"
SECONDS_PER_CHARACTER = 0.1


@dataclass
class Speaker:
    """The speech server: what it was asked, and how it answers."""

    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None
    streams: bool = False
    """Whether it sends the header of a recording whose length it does not know yet, as such servers do."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def handler(speaker: Speaker) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            speaker.asked.append(asked)
            speaker.keys.append(self.headers["Authorization"])
            assert self.path == "/v1/audio/speech"
            assert {"model", "input", "voice"} <= asked.keys()
            body = speaker.body
            if body is None:
                body = audio_bytes(seconds=SECONDS_PER_CHARACTER * len(asked["input"]), rate=24_000)
            if speaker.streams:
                body = body[:4] + b"\xff\xff\xff\xff" + body[8:40] + b"\xff\xff\xff\xff" + body[44:]
            self.send_response(speaker.status)
            self.send_header("Content-Type", "audio/wav" if speaker.status == 200 else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    state = Speaker()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def speaking(make_api: ApiFactory, speaker: Speaker) -> Api:
    return make_api(
        speech_url=speaker.url, speech_api_key=KEY, speech_model="kokoro", speech_voices="anna,ben"
    )


def said(**changes: Any) -> Any:
    return form(**{"audio": None, "speech_text": "Good morning!", **changes})


def test_the_servers_of_these_tests_speak_openais_api(speaker: Speaker) -> None:
    client = openai.OpenAI(base_url=speaker.url, api_key=KEY, max_retries=0)
    spoken = client.audio.speech.create(
        model="kokoro", voice="anna", input="x" * 10, response_format="wav"
    ).read()
    assert spoken[:4] == b"RIFF"
    assert speaker.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_text_becomes_speech_like_any_other(speaking: Api, speaker: Speaker, streams: bool) -> None:
    speaker.streams = streams
    answer = speaking.client.post("/v1/generate", files=said(voice="ben"))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert speaker.asked == [
        {"model": "kokoro", "input": "Good morning!", "voice": "ben", "response_format": "wav"}
    ]
    assert speaker.keys == [f"Bearer {KEY}"]
    assert job["speech"] == {"text": "Good morning!", "voice": "ben", "model": "kokoro"}
    recording = audio_bytes(seconds=SECONDS_PER_CHARACTER * len("Good morning!"), rate=24_000)
    sent = speaking.client.post("/v1/generate", files=form(audio=("a.wav", recording))).json()
    assert job["params"]["num_frames"] == sent["params"]["num_frames"]
    assert job["warnings"] == []
    sound = speaking.client.get(f"/v1/jobs/{job['id']}/inputs/audio")
    assert sound.content[:4] == b"RIFF"
    assert sound.content == speaking.client.get(f"/v1/jobs/{sent['id']}/inputs/audio").content
    manifest = speaking.client.get(f"/v1/jobs/{job['id']}/manifest").json()
    assert manifest["speech"] == job["speech"]
    assert manifest["inputs"]["audio"]["received_sha256"] is None
    assert speaking.store.list_names("scratch") == []


def test_json_openais_shape_and_a_dry_run_take_a_text_too(speaking: Api, speaker: Speaker) -> None:
    texts = {name: value for name, value in said() if name in ("prompt", "speech_text")}
    dry = speaking.client.post("/v1/validate", files=said())
    assert (dry.status_code, dry.json()["duration_s"] > 1) == (200, True)
    kept = speaking.client.post("/v1/files", files={"file": dict(form())["person_image"]}).json()["id"]
    as_json = speaking.client.post(
        "/v1/generate", json={"person_image": kept, "prompt": "x", "speech_text": texts["speech_text"][1]}
    )
    assert as_json.status_code == 202, as_json.text
    names = {field: reference for reference, field in FIELD_OF_REFERENCE.items()}
    body = [(names.get(name, name), value) for name, value in said(speech_text=None)]
    video = speaking.client.post(
        "/v1/videos", files=[*body, ("extra_params", (None, '{"speech_text": "Hello there."}'))]
    )
    assert video.status_code == 200, video.text
    assert [asked["voice"] for asked in speaker.asked] == ["anna"] * 3, "the first voice is the default"
    assert speaking.client.get("/v1/models").json()["voices"] == ["anna", "ben"]


def test_a_repeated_request_asks_once(speaking: Api, speaker: Speaker) -> None:
    headers = {"Idempotency-Key": "one"}
    first = speaking.client.post("/v1/generate", files=said(), headers=headers).json()["id"]
    again = speaking.client.post("/v1/generate", files=said(), headers=headers)
    assert (again.status_code, again.json()["id"], len(speaker.asked)) == (202, first, 1)
    other = speaking.client.post("/v1/generate", files=said(speech_text="Good night!"), headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"audio": ("a.wav", audio_bytes())}, "conflicting_fields", "speech_text"),
        ({"speech_text": "  "}, "invalid_value", "speech_text"),
        ({"speech_text": "x" * 4097}, "too_long", "speech_text"),
        ({"voice": "carla"}, "invalid_value", "voice"),
        ({"speech_text": None, "audio": ("a", audio_bytes()), "voice": "b"}, "missing_field", "speech_text"),
        ({"speech_text": None}, "missing_field", "audio"),
        ({"speech_text": "x" * 4000}, "audio_too_long", "speech_text"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_said_is_refused(
    speaking: Api, changes: dict[str, Any], code: str, field: str
) -> None:
    answer = speaking.client.post("/v1/generate", files=said(**changes))
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)
    assert speaking.leftovers() == []


def test_without_the_setting_the_field_is_refused(api: Api) -> None:
    answer = api.client.post("/v1/generate", files=said())
    assert (answer.status_code, answer.json()["code"]) == (422, "speech_not_offered")
    assert api.client.get("/v1/models").json()["voices"] == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": {"message": "No such voice\\u0007."}}', (422, "speech_refused")),
        (422, b"<html>", (422, "speech_refused")),
        (401, b'{"error": {"message": "bad key"}}', (503, "speech_unavailable")),
        (500, b"oops", (503, "speech_unavailable")),
        (302, b"", (503, "speech_unavailable")),
        (200, b"", (422, "speech_refused")),
        (200, b"not sound", (415, "unsupported_media_type")),
        (200, audio_bytes(seconds=0.05), (422, "audio_too_short")),
    ],
)
def test_what_the_speech_server_answers_wrongly_is_said(
    speaking: Api, speaker: Speaker, status: int, body: bytes, expected: tuple[int, str], caplog: Any
) -> None:
    speaker.status, speaker.body = status, body
    answer = speaking.client.post("/v1/generate", files=said())
    assert (answer.status_code, answer.json()["code"]) == expected
    assert "bad key" not in answer.text
    assert "\x07" not in answer.text
    assert KEY not in caplog.text + answer.text
    if expected[0] == 503:
        assert int(answer.headers["retry-after"]) > 0
    assert speaking.leftovers() == []


def test_too_many_bytes_and_no_answer_are_refused(make_api: ApiFactory, speaker: Speaker) -> None:
    small = make_api(speech_url=speaker.url, max_audio_bytes=1000)
    answer = small.client.post("/v1/generate", files=said())
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        413, "file_too_large", "speech_text"
    )  # fmt: skip


def test_a_speech_server_that_is_away_is_said_so(make_api: ApiFactory) -> None:
    answer = make_api(speech_url="http://127.0.0.1:9/v1").client.post("/v1/generate", files=said())
    assert (answer.status_code, answer.json()["code"]) == (503, "speech_unavailable")
