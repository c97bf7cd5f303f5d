"""OpenAI's own client, pointed at the server."""

from __future__ import annotations

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageColor

from server.submit.openai import FIELD_OF_REFERENCE
from tests.server.conftest import Api, ApiFactory, Live, wait_for
from tests.server.inputs import PERSON, PRODUCT, SPEECH, audio_bytes, form
from tests.server.journals import VIDEO, fail, finish_clip, start, succeed


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]
AUDIO: Any = {"audio_url": data_url(SPEECH, "audio/wav")}


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def create(client: openai.OpenAI, **extra: Any) -> Any:
    body = {"audio_reference": AUDIO, **extra}
    return client.videos.create(
        prompt="She lifts it.", input_reference=("person.png", PERSON, "image/png"), extra_body=body
    )


def test_a_video_is_created_watched_downloaded_and_deleted(live: Live, client: openai.OpenAI) -> None:
    api = Api(live.app, None)  # type: ignore[arg-type]
    video = create(client, image_reference={"image_url": data_url(PRODUCT, "image/jpeg")}, seed=5)
    assert (video.object, video.status, video.size, video.seconds) == ("video", "queued", "112x192", "1")
    assert video.prompt == "She lifts it."
    start(api, video.id)
    assert client.videos.retrieve(video.id).status == "in_progress"
    job = live.services.journal.read(video.id)
    assert job.submitted.params.seed == 5
    assert job.submitted.inputs.product_image is not None
    succeed(api, create(client).id)
    listed = client.videos.list(limit=1)
    assert [entry.status for entry in listed.data] == ["completed"]
    assert listed.has_more
    done = listed.data[0].id
    assert client.videos.download_content(done).read() == VIDEO
    assert client.videos.delete(done).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.videos.retrieve(done)
    assert caught.value.code == "job_not_found"


def test_the_clients_own_polling_works(live: Live, client: openai.OpenAI) -> None:
    api = Api(live.app, None)  # type: ignore[arg-type]

    def work() -> None:
        wait_for(lambda: bool(live.services.store.list_names("jobs")), 10)
        succeed(api, live.services.store.list_names("jobs")[0])

    worker = threading.Thread(target=work)
    worker.start()
    video = client.videos.create_and_poll(
        prompt="x", input_reference=("p.png", PERSON), extra_body={"audio_reference": AUDIO}
    )
    worker.join()
    assert (video.status, video.progress) == ("completed", 100)


def test_failed_and_canceled_jobs_are_failed_videos(live: Live, client: openai.OpenAI) -> None:
    api = Api(live.app, None)  # type: ignore[arg-type]
    broken, canceled = create(client), create(client)
    fail(api, broken.id)
    client.post(f"/jobs/{canceled.id}/cancel", cast_to=object)
    one, two = client.videos.retrieve(broken.id), client.videos.retrieve(canceled.id)
    assert (one.status, one.error.code if one.error else "") == ("failed", "out_of_memory")
    assert (two.status, two.error.code if two.error else "") == ("failed", "cancelled")


def test_extra_params_seconds_and_json_bodies(live: Live, client: openai.OpenAI) -> None:
    body = {
        "prompt": "x",
        "seconds": "3",
        "input_reference": {"image_url": data_url(PERSON, "image/png")},
        "audio_reference": data_url(audio_bytes(seconds=8), "audio/wav"),
        "extra_params": {"prompt": ["one", "two"], "product_scale": 0.5},
    }
    answer: Any = client.post("/videos", body=body, cast_to=object)
    params = live.services.journal.read(answer["id"]).submitted.params
    assert (params.prompts, params.product_scale, params.num_clips) == (("one", "two"), 0.5, 1)
    assert answer["seconds"] == "3.2"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"audio_reference": None}, "audio_reference"),
        ({"audio_reference": {"audio_url": "x", "url": "y"}}, "audio_reference"),
        ({"audio_reference": "https://127.0.0.1/x.wav"}, "audio_reference"),
        ({"seconds": "-4"}, "seconds"),
        ({"seconds": "long"}, "seconds"),
        ({"extra_params": json.dumps([1])}, "extra_params"),
        ({"extra_params": {"colour": "red"}}, "colour"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_errors_come_in_openais_envelope_naming_the_field(
    client: openai.OpenAI, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(client, **extra)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def sync_body() -> list[tuple[str, Any]]:
    names = {field: reference for reference, field in FIELD_OF_REFERENCE.items()}
    return [(names.get(name, name), value) for name, value in form()]


def test_a_sync_create_answers_with_the_file_itself(live: Live) -> None:
    api = Api(live.app, None)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{live.url}/v1/videos/sync", files=sync_body(), timeout=60)
        wait_for(lambda: bool(live.services.store.list_names("jobs")), 30)
        (job_id,) = live.services.store.list_names("jobs")
        succeed(api, job_id)
        answer = asked.result()
    assert (answer.status_code, answer.content) == (200, VIDEO)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["location"] == f"/v1/videos/{job_id}"


def test_a_sync_create_that_takes_too_long_says_where_to_ask(make_api: ApiFactory) -> None:
    api = make_api(max_wait_s=0.3)
    headers = {"Idempotency-Key": "one"}
    late = api.client.post("/v1/videos/sync", files=sync_body(), headers=headers)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "job_not_finished")
    assert late.headers["x-should-retry"] == "true"
    job_id = late.headers["location"].rpartition("/")[2]
    succeed(api, job_id)
    assert api.client.post("/v1/videos/sync", files=sync_body(), headers=headers).content == VIDEO
    api.client.delete(f"/v1/videos/{job_id}")
    canceled = api.client.post("/v1/videos/sync", files=[("prompt", (None, "x"))])
    assert (canceled.status_code, canceled.json()["error"]["param"]) == (422, "input_reference")


def test_a_video_is_remixed_and_seen_at_a_glance(live: Live, client: openai.OpenAI) -> None:
    api = Api(live.app, None)  # type: ignore[arg-type]
    video = create(client, audio_reference=data_url(audio_bytes(seconds=9.0), "audio/wav"), seed=9)
    with pytest.raises(openai.ConflictError) as early:
        client.videos.download_content(video.id, variant="spritesheet")
    assert early.value.code == "job_not_finished"
    start(api, video.id)
    colours = ["red", "lime", "blue"]
    for number, colour in enumerate(colours):
        finish_clip(api, video.id, number, poster=plain(colour))
    succeed(api, video.id, started=True)
    answer = client.videos.download_content(video.id, variant="spritesheet")
    sheet = Image.open(io.BytesIO(answer.read()))
    assert (sheet.format, sheet.size) == ("JPEG", (2 * 40, 2 * 60)), "two rows of two"
    seen = [sheet.getpixel((20 + 40 * (k % 2), 30 + 60 * (k // 2))) for k in range(4)]
    for colour, pixel in zip([*colours, "black"], seen, strict=True):
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, ImageColor.getrgb(colour), strict=False)) < 12, colour
    url = f"{live.url}/v1/videos/{video.id}/content?variant=spritesheet"
    again = httpx.get(url, headers={"If-None-Match": answer.response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.head(url).headers["content-type"] == "image/jpeg"
    remixed = client.videos.remix(video.id, prompt="She waves.")
    assert (remixed.remixed_from_video_id, remixed.prompt, remixed.status) == (
        video.id, "She waves.", "queued"
    )  # fmt: skip
    submitted = live.services.journal.read(remixed.id).submitted
    assert (submitted.params.seed, submitted.params.num_clips, submitted.clips) == (9, 3, ())
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.post(f"/videos/{video.id}/remix", body={"colour": "red"}, cast_to=object)
    assert refused.value.param == "colour"


def plain(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 60), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
