"""The server and `cointeract generate` without one resolve the same request to the same settings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cli.generate import options_of
from contract.params import GenerationParams
from contract.request import FieldError
from contract.resolve import resolve
from contract.video import CLIP_FRAMES, SpeechLength, video_length
from tests.server.conftest import CARD, Api, ApiFactory
from tests.server.decoded import LIMITS, decode_here
from tests.server.inputs import PERSON, audio_bytes, form

SHARED = {"fit": "contain", "num_inference_steps": 3, "product_scale": 0.5, "audio_face_mask": True}


def of_server(api: Api, fields: dict[str, Any], speech: bytes) -> GenerationParams:
    """What the API makes of a request."""
    form = [(name, (None, str(value).lower())) for name, value in fields.items()]
    files = [("person_image", ("p.png", PERSON)), ("audio", ("speech", speech))]
    answer = api.client.post("/v1/validate", files=form + files)
    assert answer.status_code == 200, answer.text
    params = answer.json()["params"]
    params.pop("size")
    return GenerationParams.model_validate(params)


def of_command_line(fields: dict[str, Any], speech: bytes, folder: Path) -> GenerationParams:
    """What `cointeract generate` makes of it in its own process."""
    path = folder / "speech"
    path.write_bytes(speech)
    options = options_of(fields, {"person_image": path, "audio": path})
    speech = decode_here("audio", path, folder / "speech.wav", LIMITS).speech_length
    return resolve(options.fields, CARD, speech)


@pytest.mark.parametrize(
    "fields",
    [{}, SHARED, {"preset": "parity", "num_clips": 1}, {"size": "192x112"}, {"width": 64, "height": 80}],
)
@pytest.mark.parametrize("seconds", [0.21, 3.2, 3.21, 3.23, 6.42])
def test_the_api_and_the_command_line_resolve_a_request_alike(
    api: Api, tmp_path: Path, fields: dict[str, Any], seconds: float
) -> None:
    fields = {"prompt": "hello", "seed": 5, **fields}
    speech = audio_bytes(seconds=seconds)
    assert of_server(api, fields, speech) == of_command_line(fields, speech, tmp_path)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "M4A"])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_both_doors_hear_the_same_length_in_every_format(
    api: Api, tmp_path: Path, kind: str, rate: int
) -> None:
    seconds = random.Random(f"{kind} {rate}").uniform(1.0, 4.0)
    speech = audio_bytes(kind, seconds, rate)
    fields = {"prompt": "hello", "seed": 5}
    assert of_server(api, fields, speech) == of_command_line(fields, speech, tmp_path)


def test_a_recording_barely_longer_than_a_clip_needs_no_second_one() -> None:
    assert video_length(SpeechLength(51_360, 16_000)) == (1, CLIP_FRAMES)  # 3.21 s
    assert video_length(SpeechLength(51_680, 16_000)) == (1, CLIP_FRAMES)  # 3.23 s: one frame
    assert video_length(SpeechLength(52_480, 16_000)) == (1, CLIP_FRAMES)  # 3.28 s: two
    assert video_length(SpeechLength(53_120, 16_000)) == (2, CLIP_FRAMES + 3)
    assert video_length(SpeechLength(53_120, 16_000), most_clips=1) == (1, CLIP_FRAMES)
    assert video_length(SpeechLength(103_040, 16_000)) == (2, 2 * CLIP_FRAMES)  # 6.44 s
    assert video_length(SpeechLength(52_480, 16_000), max_dropped_frames=1) == (2, CLIP_FRAMES + 2)
    assert video_length(SpeechLength(52_480, 16_000), max_dropped_frames=0) == (2, CLIP_FRAMES + 2)


def test_parity_drops_no_clip() -> None:
    fields = options_of({"prompt": "hello", "preset": "parity"}, {}).fields
    assert resolve(fields, CARD, SpeechLength(52_480, 16_000)).num_clips == 2


@pytest.mark.parametrize("frames", [1, 2])
def test_a_speech_of_a_frame_or_two_is_never_dropped_whole(frames: int) -> None:
    assert video_length(SpeechLength(640 * frames, 16_000), max_dropped_frames=79) == (1, frames)


def test_dropped_frames_are_told_and_a_setting_keeps_them(make_api: ApiFactory) -> None:
    def told(seconds: float, **settings: int) -> tuple[int, list[str]]:
        files = form(audio=audio_bytes(seconds=seconds), prompt="hello")
        answer = make_api(**settings).client.post("/v1/validate", files=files).json()
        return answer["params"]["num_clips"], [warning["code"] for warning in answer["warnings"]]

    assert told(6.43) == (2, ["frames_dropped"])
    assert told(6.43, max_dropped_frames=0) == (3, [])
    assert told(6.52) == (3, [])
    assert told(6.4) == (2, [])


def test_a_seed_is_drawn_when_none_is_given() -> None:
    options = options_of({"prompt": "hello"}, {})
    seeds = {resolve(options.fields, CARD, SpeechLength(16_000, 16_000)).seed for _ in range(8)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"size": "100x100"}, "size"),
        ({"size": "48x64"}, "size"),
        ({"size": "1024x1024"}, "size"),
        ({"width": 64}, "height"),
        ({"size": "64x64", "width": 64}, "size"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_what_the_checkpoint_cannot_make_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    options = options_of({"prompt": "hello", **fields}, {})
    with pytest.raises(FieldError) as caught:
        resolve(options.fields, CARD, SpeechLength(16_000, 16_000))
    assert caught.value.field == field
    assert str(caught.value).startswith(field)
