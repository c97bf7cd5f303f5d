"""Submitting a job: what is stored, and what is refused with nothing left behind."""

from __future__ import annotations

import base64
import errno
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from contract.job import JobState
from tests.server.conftest import Api, ApiFactory
from tests.server.inputs import PERSON, PRODUCT, SPEECH, audio_bytes, form, image_bytes, samples, video_bytes


def test_the_server_never_imports_torch() -> None:
    program = "import sys, server.app; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_a_submit_is_stored_durably_and_answered_with_202(api: Api) -> None:
    answer = api.client.post("/v1/generate", files=form(seed=7))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["seed"] == 7
    assert job["checkpoint"] == {"name": "tiny", "trained": False}
    assert api.services.journal.read(job["id"]).state is JobState.QUEUED
    assert not api.store.list_names("scratch")
    assert api.client.get(job["urls"]["self"]).json()["id"] == job["id"]


def test_settings_left_out_come_from_the_checkpoint_and_the_speech(api: Api) -> None:
    job = api.client.post("/v1/generate", files=form(audio=audio_bytes(seconds=7.0))).json()
    params = job["params"]
    assert (params["size"], params["width"], params["height"]) == ("112x192", 112, 192)
    assert (params["num_inference_steps"], params["guidance_scale"], params["flow_shift"]) == (4, 7.0, 7.0)
    assert params["negative_prompt"] == "blurry"
    assert (params["num_frames"], params["num_clips"]) == (175, 3)
    assert params["fit"] == "cover"
    assert params["seed"] == job["seed"]


def test_settings_given_are_kept(api: Api) -> None:
    given = {
        "prompt": ["one", "two"],
        "negative_prompt": " ",
        "width": 192,
        "height": 112,
        "num_inference_steps": 9,
        "guidance_scale": "1.5",
        "flow_shift": "3",
        "product_scale": ".5",
        "num_clips": 1,
        "fit": "contain",
        "audio_face_mask": "true",
        "preset": "parity",
        "priority": "low",
        "metadata": json.dumps({"order": "7"}),
        "retention_s": 600,
        "model": "tiny",
    }
    answer = api.client.post("/v1/generate", files=form(audio=audio_bytes(seconds=7.0), **given))
    assert answer.status_code == 202, answer.text
    job, params = answer.json(), answer.json()["params"]
    assert params["prompts"] == ["one", "two"]
    assert params["negative_prompt"] == " "
    assert (params["size"], params["num_inference_steps"], params["guidance_scale"]) == ("192x112", 9, 1.5)
    assert (params["flow_shift"], params["product_scale"], params["num_clips"]) == (3.0, 0.5, 1)
    assert (params["num_frames"], params["fit"], params["audio_face_mask"]) == (80, "contain", True)
    assert (params["preset"], job["priority"], job["metadata"]) == ("parity", "low", {"order": "7"})
    assert api.services.journal.read(job["id"]).submitted.retention_s == 600


def test_a_redis_that_is_down_does_not_refuse_a_submit(make_api: ApiFactory) -> None:
    api = make_api(redis_url="unix:///nonexistent/redis.sock")
    answer = api.client.post("/v1/generate", files=form())
    assert answer.status_code == 202
    assert api.services.journal.read(answer.json()["id"]).state is JobState.QUEUED
    assert api.client.get("/readyz").status_code == 503


def stored(api: Api, job: dict[str, Any], name: str) -> Path:
    return api.store.local_path(f"jobs/{job['id']}/inputs/{name}")


def submitted(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**changes))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_images_are_stored_as_the_same_pixels_in_png(
    api: Api, kind: str, options: dict[str, Any]
) -> None:
    job = submitted(api, person_image=image_bytes(kind, **options))
    with Image.open(stored(api, job, "person.png")) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert image.tobytes() == Image.open(io.BytesIO(PERSON)).tobytes()


def test_a_jpeg_is_turned_upright_by_its_exif(api: Api) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    job = submitted(api, person_image=image_bytes("JPEG", (64, 96), exif=turned))
    with Image.open(stored(api, job, "person.png")) as image:
        assert image.size == (96, 64)
        assert not image.getexif()


def test_transparent_pixels_become_white(api: Api) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(buffer, "PNG")
    job = submitted(api, product_image=buffer.getvalue())
    with Image.open(stored(api, job, "product.png")) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_grey_images_of_16_bits_are_scaled_not_clipped(api: Api) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), 0x8000, np.uint16)).save(buffer, "PNG")
    job = submitted(api, product_image=buffer.getvalue())
    with Image.open(stored(api, job, "product.png")) as image:
        assert image.getpixel((0, 0)) == (128, 128, 128)


def test_a_mono_wav_of_16_bits_keeps_every_sample(api: Api) -> None:
    job = submitted(api, audio=audio_bytes("WAV", 0.7, 22_050))
    kept, rate = soundfile.read(stored(api, job, "speech.wav"), dtype="int16")
    sent, _ = soundfile.read(io.BytesIO(audio_bytes("WAV", 0.7, 22_050)), dtype="int16")
    assert rate == 22_050
    np.testing.assert_array_equal(kept, sent)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "M4A"])
@pytest.mark.parametrize("channels", [1, 2])
def test_speech_of_every_format_becomes_a_wav_of_the_same_sound_and_channels(
    api: Api, kind: str, channels: int
) -> None:
    subtype = "PCM_24" if kind == "FLAC" else None
    job = submitted(api, audio=audio_bytes(kind, 1.0, 24_000, channels, subtype))
    info = soundfile.info(stored(api, job, "speech.wav"))
    assert (info.format, info.channels, info.samplerate) == ("WAV", channels, 24_000)
    assert info.duration == pytest.approx(1.0, abs=0.1)
    kept, _ = soundfile.read(stored(api, job, "speech.wav"), dtype="float32", always_2d=True)
    loudness = np.sqrt(np.mean(samples(1.0, 24_000, channels) ** 2, axis=0))
    assert np.sqrt(np.mean(kept**2, axis=0)) == pytest.approx(loudness, rel=0.1)


def test_speech_above_48_khz_is_resampled(api: Api) -> None:
    job = submitted(api, audio=audio_bytes("WAV", 0.5, 96_000))
    info = soundfile.info(stored(api, job, "speech.wav"))
    assert (info.samplerate, info.frames) == (48_000, 24_000)


def test_an_mp3_with_a_cover_picture_is_speech(api: Api) -> None:
    picture = b"\0" * 300_000
    size = len(picture) + 10
    frame = b"APIC" + size.to_bytes(4, "big") + b"\0\0" + b"\0image/png\0"[:10] + picture
    length = len(frame)
    tag = b"ID3\x03\x00\x00" + bytes([(length >> shift) & 0x7F for shift in (21, 14, 7, 0)]) + frame
    submitted(api, audio=tag + audio_bytes("MP3"))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_pose_video_is_rewritten_without_loss(api: Api, kind: str) -> None:
    import av

    sent = video_bytes(8, kind=kind)
    job = submitted(api, pose_video=sent)

    def frames(source: Any) -> list[tuple[float, bytes]]:
        with av.open(source) as container:
            return [(float(f.time or 0), f.to_ndarray().tobytes()) for f in container.decode(video=0)]

    before, after = frames(io.BytesIO(sent)), frames(str(stored(api, job, "pose.mp4")))
    assert [pixels for _, pixels in before] == [pixels for _, pixels in after]
    assert [time for time, _ in after] == pytest.approx([time - before[0][0] for time, _ in before], abs=1e-3)


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def as_json(**changes: Any) -> dict[str, Any]:
    body = {
        "person_image": data_url(PERSON, "image/png"),
        "audio": data_url(SPEECH, "audio/wav"),
        "prompt": "a woman",
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def test_json_with_data_urls_is_as_good_as_a_form(api: Api) -> None:
    body = as_json(product_image=data_url(PRODUCT, "image/jpeg"), seed=3, metadata={"a": "b"})
    answer = api.client.post("/v1/generate", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["params"]["prompts"] == ["a woman"]
    assert not api.store.list_names("scratch")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any content."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def flac_bomb(seconds: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 8000, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 5004 RTP/AVP 0\r\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='100' height='100'/>"
NOT_A_NUMBER = np.array([0.1, np.nan] * 8000, np.float32)


def float_wav(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


REFUSALS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"person_image": None}, 422, "missing_field", "person_image"),
    ({"audio": None}, 422, "missing_field", "audio"),
    ({"prompt": None}, 422, "missing_field", "prompt"),
    ({"prompt": [" "]}, 422, "invalid_value", "prompt"),
    ({"prompt": ["a\x00b"]}, 422, "control_characters", "prompt.0"),
    ({"prompt": ["ok", "a\x1b[31m"]}, 422, "control_characters", "prompt.1"),
    ({"prompt": ["x" * 4001]}, 422, "too_long", "prompt"),
    ({"prompt": ["x"] * 101}, 422, "too_many", "prompt"),
    ({"negative_prompt": "x" * 4001}, 422, "too_long", "negative_prompt"),
    ({"colour": "red"}, 422, "unknown_field", "colour"),
    ({"seed": ["1", "2"]}, 422, "duplicate_field", "seed"),
    ({"seed": "-2"}, 422, "out_of_range", "seed"),
    ({"seed": str(2**53)}, 422, "out_of_range", "seed"),
    ({"seed": "1.5"}, 422, "invalid_value", "seed"),
    ({"seed": "true"}, 422, "invalid_value", "seed"),
    ({"seed": "1_000"}, 422, "invalid_value", "seed"),
    ({"num_inference_steps": "0"}, 422, "out_of_range", "num_inference_steps"),
    ({"num_inference_steps": "101"}, 422, "out_of_range", "num_inference_steps"),
    ({"num_clips": "0"}, 422, "out_of_range", "num_clips"),
    ({"num_clips": "101"}, 422, "out_of_range", "num_clips"),
    ({"guidance_scale": "nan"}, 422, "invalid_value", "guidance_scale"),
    ({"guidance_scale": "inf"}, 422, "invalid_value", "guidance_scale"),
    ({"guidance_scale": "1e999"}, 422, "invalid_value", "guidance_scale"),
    ({"guidance_scale": "-1"}, 422, "out_of_range", "guidance_scale"),
    ({"flow_shift": "0"}, 422, "out_of_range", "flow_shift"),
    ({"flow_shift": "1e-20"}, 422, "out_of_range", "flow_shift"),
    ({"product_scale": "9"}, 422, "out_of_range", "product_scale"),
    ({"size": "113x192"}, 422, "unsupported_size", "size"),
    ({"size": "48x192"}, 422, "unsupported_size", "size"),
    ({"size": "1024x1024"}, 422, "unsupported_size", "size"),
    ({"size": "big"}, 422, "invalid_value", "size"),
    ({"width": "112"}, 422, "missing_field", "height"),
    ({"size": "112x192", "width": "112"}, 422, "conflicting_fields", "size"),
    ({"width": "112", "height": "190"}, 422, "unsupported_size", "height"),
    ({"fit": "zoom"}, 422, "invalid_value", "fit"),
    ({"preset": "quick"}, 422, "invalid_value", "preset"),
    ({"priority": "urgent"}, 422, "invalid_value", "priority"),
    ({"audio_face_mask": "yes"}, 422, "invalid_value", "audio_face_mask"),
    ({"model": "other"}, 422, "unknown_model", "model"),
    ({"retention_s": str(10**9)}, 422, "out_of_range", "retention_s"),
    ({"metadata": "[]"}, 422, "invalid_value", "metadata"),
    ({"metadata": '{"a": 1}'}, 422, "invalid_value", "metadata.a"),
    ({"metadata": json.dumps({str(n): "" for n in range(17)})}, 422, "too_many", "metadata"),
    ({"webhook_url": "http://example.com/"}, 422, "fetch_refused", "webhook_url"),
    ({"person_image": "a text"}, 422, "invalid_value", "person_image"),
    ({"person_image": b""}, 422, "empty_file", "person_image"),
    ({"person_image": SVG}, 415, "unsupported_media_type", "person_image"),
    ({"person_image": SPEECH}, 415, "unsupported_media_type", "person_image"),
    ({"person_image": image_bytes("GIF")}, 415, "unsupported_media_type", "person_image"),
    ({"person_image": PERSON[:-20]}, 422, "truncated_file", "person_image"),
    ({"person_image": PERSON[: len(PERSON) // 2]}, 422, "truncated_file", "person_image"),
    ({"person_image": image_bytes("JPEG")[:-200]}, 422, "truncated_file", "person_image"),
    ({"person_image": image_bytes("WEBP")[:-50]}, 422, "truncated_file", "person_image"),
    ({"person_image": PERSON[:8] + b"\0" * 500}, 422, "truncated_file", "person_image"),
    ({"person_image": png_header(8001, 8000)}, 422, "image_too_large", "person_image"),
    ({"person_image": png_header(2**31 - 1, 2**31 - 1)}, 422, None, "person_image"),  # type: ignore[list-item]
    ({"person_image": png_header(4000, 4000)}, 422, "truncated_file", "person_image"),
    ({"product_image": image_bytes(size=(31, 64))}, 422, "image_too_small", "product_image"),
    ({"audio": PERSON}, 415, "unsupported_media_type", "audio"),
    ({"audio": SDP}, 415, "unsupported_media_type", "audio"),
    ({"audio": HLS}, 415, "unsupported_media_type", "audio"),
    ({"audio": audio_bytes("FLAC")[:-200]}, 422, "undecodable_file", "audio"),
    ({"audio": audio_bytes("OGG")[:-50]}, 422, "truncated_file", "audio"),
    ({"audio": audio_bytes("M4A")[:-50]}, 422, "truncated_file", "audio"),
    ({"audio": SPEECH[:12] + b"\0" * 500}, 422, None, "audio"),  # type: ignore[list-item]
    ({"audio": audio_bytes(seconds=0.1)}, 422, "audio_too_short", "audio"),
    ({"audio": flac_bomb(301)}, 422, "audio_too_long", "audio"),
    ({"audio": audio_bytes(channels=9)}, 422, "audio_unsupported_layout", "audio"),
    ({"audio": audio_bytes(rate=2000)}, 422, "audio_unsupported_layout", "audio"),
    ({"audio": float_wav(NOT_A_NUMBER)}, 422, "audio_invalid_samples", "audio"),
    ({"audio": float_wav(np.full(8000, 1e9, np.float32))}, 422, "audio_invalid_samples", "audio"),
    ({"pose_video": PERSON}, 415, "unsupported_media_type", "pose_video"),
    ({"pose_video": video_bytes()[:-100]}, 422, "truncated_file", "pose_video"),
    ({"pose_video": audio_bytes("M4A")}, 422, "undecodable_file", "pose_video"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_a_bad_request_is_refused_naming_the_field_and_leaves_nothing(api: Api, case: int) -> None:
    changes, status, code, field = REFUSALS[case]
    answer = api.client.post("/v1/generate", files=form(**changes))
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["field"]) == (status, field), problem
    assert code is None or problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["detail"]
    if problem["code"] in ("out_of_range", "too_long", "too_many"):
        assert str(problem["limit"]).removesuffix(".0") in problem["detail"], problem
    assert api.leftovers() == []


JSON_REFUSALS: list[tuple[Any, int, str, str | None]] = [
    (b"{", 400, "malformed_body", None),
    (b"[]", 400, "malformed_body", None),
    (b'{"seed": NaN}', 400, "malformed_body", None),
    (b"[" * 100_000, 400, "malformed_body", None),
    (b'{"prompt": "\xff"}', 400, "malformed_body", None),
    (as_json(prompt="\ud800 x"), 422, "invalid_value", "prompt.0"),
    (as_json(seed=True), 422, "invalid_value", "seed"),
    (as_json(seed=1.0), 422, "invalid_value", "seed"),
    (as_json(seed="1"), 422, "invalid_value", "seed"),
    (as_json(guidance_scale="7"), 422, "invalid_value", "guidance_scale"),
    (as_json(prompt=[1]), 422, "invalid_value", "prompt.0"),
    (as_json(prompt=[]), 422, "missing_field", "prompt"),
    (as_json(audio=5), 422, "invalid_value", "audio"),
    (as_json(audio="speech.wav"), 422, "invalid_value", "audio"),
    (as_json(audio="file:///etc/passwd"), 422, "invalid_value", "audio"),
    (as_json(audio="http://example.com/a.wav"), 422, "invalid_value", "audio"),
    (as_json(audio="https://127.0.0.1/a.wav"), 422, "fetch_refused", "audio"),
    (as_json(audio="data:audio/wav;base64,!!"), 422, "invalid_value", "audio"),
    (as_json(audio="data:audio/wav;base64"), 422, "invalid_value", "audio"),
    (as_json(audio="data:,"), 422, "empty_file", "audio"),
    (as_json(extra=1), 422, "unknown_field", "extra"),
    (as_json(audio=None), 422, "missing_field", "audio"),
]


@pytest.mark.parametrize("case", range(len(JSON_REFUSALS)))
def test_bad_json_is_refused_and_leaves_nothing(api: Api, case: int) -> None:
    body, status, code, field = JSON_REFUSALS[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = api.client.post("/v1/generate", content=content, headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem.get("field")) == (status, code, field), problem
    assert api.leftovers() == []


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("text/plain", b"hello", 415, "unsupported_content_type"),
        ("", b"", 415, "unsupported_content_type"),
        ("multipart/form-data", b"x", 400, "malformed_body"),
        ("multipart/form-data; boundary=x", b"garbage", 400, "malformed_body"),
        ("multipart/form-data; boundary=x", b"--x\r\n", 400, "malformed_body"),
        ("multipart/form-data; boundary=x", b"--x\r\nFoo: bar\r\n\r\nhi\r\n--x--\r\n", 400, "malformed_body"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n\xff\r\n--x--\r\n',
            422,
            "invalid_value",
        ),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    api: Api, content_type: str, body: bytes, status: int, code: str
) -> None:
    answer = api.client.post("/v1/generate", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert api.leftovers() == []


def test_too_many_bytes_are_refused_per_file_and_per_request(make_api: ApiFactory) -> None:
    api = make_api(max_upload_bytes=200_000, max_image_bytes=50_000, max_json_bytes=1000)
    one = api.client.post("/v1/generate", files=form(person_image=b"\x89PNG" + b"\0" * 60_000))
    assert (one.status_code, one.json()["code"], one.json()["field"]) == (
        413,
        "file_too_large",
        "person_image",
    )
    assert one.json()["limit"] == 50_000
    everything = api.client.post("/v1/generate", files=form(audio=b"\0" * 300_000))
    assert (everything.status_code, everything.json()["code"]) == (413, "request_too_large")
    in_json = api.client.post("/v1/generate", json=as_json())
    assert (in_json.status_code, in_json.json()["code"]) == (413, "request_too_large")
    assert api.leftovers() == []


def test_validate_tells_what_a_submit_would_become_and_stores_nothing(api: Api) -> None:
    answer = api.client.post("/v1/validate", files=form(num_inference_steps=3))
    assert answer.status_code == 200, answer.text
    assert answer.json()["params"]["num_inference_steps"] == 3
    assert answer.json()["queue_position"] == 1
    assert answer.json()["duration_s"] == 1.0
    assert api.leftovers() == []
    refused = api.client.post("/v1/validate", files=form(audio=None))
    assert (refused.status_code, refused.json()["field"]) == (422, "audio")


def test_without_a_checkpoint_a_submit_is_told_to_come_back(api: Api) -> None:
    api.store.remove("checkpoints/tiny.json")
    answer = api.client.post("/v1/generate", files=form())
    assert (answer.status_code, answer.json()["code"]) == (503, "no_checkpoint")
    assert int(answer.headers["retry-after"]) > 0
    assert api.leftovers() == []


@pytest.mark.parametrize("step", ["adopt_folder", "create"])
def test_a_disk_that_fills_up_on_the_way_is_507_and_leaves_nothing(
    api: Api, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(api.store, step, full)
    answer = api.client.post("/v1/generate", files=form(), headers={"Idempotency-Key": "full"})
    assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
    assert int(answer.headers["retry-after"]) > 0
    monkeypatch.undo()
    assert api.leftovers() == []
    again = api.client.post("/v1/generate", files=form(), headers={"Idempotency-Key": "full"})
    assert again.status_code == 202
