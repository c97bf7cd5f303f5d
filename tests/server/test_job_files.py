"""What a job was made from, and the still pictures that stand for it and its clips."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
import soundfile
from PIL import Image

from contract.video import POSTER_HEIGHT
from tests.server.conftest import Api
from tests.server.inputs import audio_bytes, form, image_bytes
from tests.server.journals import finish_clip, start, succeed


def submit(api: Api, **changes: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(**changes))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def picture(api: Api, path: str) -> Image.Image:
    answer = api.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg"), answer.text
    image = Image.open(io.BytesIO(answer.content))
    assert image.format == "JPEG"
    return image


def test_inputs_come_back_as_they_were_decoded(api: Api) -> None:
    job = submit(
        api, person_image=image_bytes("JPEG", (90, 160)), audio=audio_bytes("FLAC", seconds=1.5, rate=22050)
    )
    inputs = job["urls"]["inputs"]
    assert inputs == {
        name: f"/v1/jobs/{job['id']}/inputs/{name}" for name in ("person_image", "product_image", "audio")
    }
    person = api.client.get(inputs["person_image"])
    assert person.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(person.content)).size == (90, 160)
    assert person.headers["etag"] == f'"{hashlib.sha256(person.content).hexdigest()}"'
    assert person.headers["content-disposition"].endswith(f'filename="{job["id"]}-person_image.png"')
    speech = api.client.get(inputs["audio"])
    samples, rate = soundfile.read(io.BytesIO(speech.content))
    assert (speech.headers["content-type"], rate, len(samples)) == ("audio/wav", 22050, 33075)


def test_an_input_takes_ranges_heads_and_conditions_like_every_file(api: Api) -> None:
    path = submit(api)["urls"]["inputs"]["audio"]
    whole = api.client.get(path)
    part = api.client.get(path, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    head = api.client.head(path)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))
    assert api.client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    "name", ["pose_video", "video", "thumbnail", "..%2fjournal", "__class__", "model_fields"]
)
def test_an_input_that_the_job_has_not_is_not_found(api: Api, name: str) -> None:
    answer = api.client.get(f"/v1/jobs/{submit(api)['id']}/inputs/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((90, 160), (90, 160)), ((900, 1600), (202, 360)), ((2000, 100), (720, 36)), ((3000, 3000), (360, 360))],
)
def test_a_job_has_a_small_picture_of_the_person_from_the_start(
    api: Api, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    job = submit(api, person_image=image_bytes("PNG", size))
    assert picture(api, job["urls"]["thumbnail"]).size == expected


def test_the_thumbnail_is_that_of_the_newest_finished_clip(api: Api) -> None:
    job = submit(api, audio=audio_bytes(seconds=7.0))
    first = api.client.get(job["urls"]["thumbnail"])
    start(api, job["id"])
    for clip in range(2):
        finish_clip(api, job["id"], clip)
        answer = api.client.get(job["urls"]["thumbnail"])
        assert answer.content == b"poster %d" % clip
        assert answer.headers["etag"] != first.headers["etag"]
        assert api.client.get(f"/v1/jobs/{job['id']}/clips/{clip}/poster").content == b"poster %d" % clip
    missing = api.client.get(f"/v1/jobs/{job['id']}/clips/2/poster")
    assert (missing.status_code, missing.json()["code"]) == (409, "job_not_finished")
    assert api.client.get(f"/v1/jobs/{job['id']}/clips/9/poster").status_code == 404
    seen = api.client.get(f"/v1/jobs/{job['id']}").json()["urls"]
    assert seen["posters"] == [f"{clip}/poster" for clip in seen["clips"]]
    assert len(seen["posters"]) == 2


def test_a_job_of_an_older_version_has_the_pictures_that_it_has(api: Api) -> None:
    job = submit(api)
    entry = api.store.root / "jobs" / job["id"] / "journal" / "000000.json"
    journal = api.services.journal.read(job["id"])
    entry.write_text(journal.submitted.model_copy(update={"thumbnail": None}).model_dump_json())
    answer = api.client.get(job["urls"]["thumbnail"])
    assert (answer.status_code, answer.json()["code"]) == (409, "no_result")
    succeed(api, job["id"])
    assert api.client.get(job["urls"]["thumbnail"]).status_code == 200


def test_pictures_and_inputs_count_as_stored(api: Api) -> None:
    job = submit(api)
    succeed(api, job["id"])
    api.services.index.refresh()
    (summary,) = api.services.index._jobs.values()
    folder = api.store.root / "jobs" / job["id"]
    files = [path for path in folder.rglob("*") if path.is_file() and "journal" not in path.parts]
    assert summary.stored_bytes == sum(path.stat().st_size for path in files)
    assert POSTER_HEIGHT == 360
