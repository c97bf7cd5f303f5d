"""The stream and the preview of a job, from its first finished clip on."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from contract.entries import Succeeded
from contract.job import utcnow
from contract.video import FPS
from server.app import create_app
from server.keys import create_key
from tests.faults.stack import Stack
from tests.server.conftest import Api, serving
from tests.server.inputs import audio_bytes, form
from tests.server.journals import VIDEO, finish_clip, put, start, succeed
from workers.engines.fake import FakeSettings


def submit(api: Api, seconds: float = 7.0) -> dict[str, Any]:
    answer = api.client.post("/v1/generate", files=form(audio=audio_bytes(seconds=seconds)))
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def playlist_of(api: Api, job: dict[str, Any]) -> str:
    answer = api.client.get(f"/v1/jobs/{job['id']}/stream.m3u8")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.apple.mpegurl")
    return answer.text


def check_playlist(text: str, seconds: list[float], *, ended: bool) -> list[str]:
    """Check what RFC 8216 asks of a media playlist of ours; the addresses of its segments."""
    lines = text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert text.endswith("\n")
    tags = [line for line in lines if line.startswith("#")]
    for once in ("VERSION", "TARGETDURATION", "PLAYLIST-TYPE", "MEDIA-SEQUENCE", "MAP"):
        assert sum(tag.startswith(f"#EXT-X-{once}:") for tag in tags) == 1, once
    longest = int(re.findall("TARGETDURATION:([0-9]+)", text)[0])
    durations = [float(found) for found in re.findall(r"#EXTINF:([0-9.]+),\n", text)]
    assert durations == pytest.approx(seconds)
    assert all(round(duration) <= longest for duration in durations)
    segments = [line for line in lines if line and not line.startswith("#")]
    assert len(segments) == len(durations)
    assert "#EXT-X-PLAYLIST-TYPE:EVENT" in tags
    assert (lines[-1] == "#EXT-X-ENDLIST") is ended
    return [re.findall('MAP:URI="([^"]+)"', text)[0], *segments]


def test_the_playlist_grows_clip_by_clip_and_ends_with_the_job(api: Api) -> None:
    job = submit(api)
    for path in ("stream.m3u8", "preview.mp4", "stream/header.mp4", "stream/0.m4s"):
        answer = api.client.get(f"/v1/jobs/{job['id']}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished"), path
        assert "retry-after" in answer.headers
    assert (job["urls"]["stream"], job["urls"]["preview"]) == (None, None)
    start(api, job["id"])
    before = ""
    for count in (1, 2):
        finish_clip(api, job["id"], count - 1)
        text = playlist_of(api, job)
        check_playlist(text, [3.2] * count, ended=False)
        assert text.startswith(before), "an event playlist is only ever appended to"
        before = text
    finish_clip(api, job["id"], 2)
    api.client.post(job["urls"]["cancel"])
    text = playlist_of(api, job)
    parts = check_playlist(text, [3.2, 3.2, 0.6], ended=True)
    assert text.startswith(before)
    contents = [api.client.get(f"/v1/jobs/{job['id']}/{part}").content for part in parts]
    assert contents == [b"header", b"fragment 0", b"fragment 1", b"fragment 2"]
    seen = api.client.get(f"/v1/jobs/{job['id']}").json()["urls"]
    assert seen["stream"] == f"/v1/jobs/{job['id']}/stream.m3u8"


def test_a_job_that_ended_without_a_clip_has_no_stream(api: Api) -> None:
    job = submit(api)
    api.client.post(job["urls"]["cancel"])
    for path in ("stream.m3u8", "preview.mp4"):
        assert api.client.get(f"/v1/jobs/{job['id']}/{path}").status_code == 404


def test_the_preview_is_what_is_finished_and_then_the_video(api: Api) -> None:
    job = submit(api)
    start(api, job["id"])
    finish_clip(api, job["id"], 0)
    path = f"/v1/jobs/{job['id']}/preview.mp4"
    first = api.client.get(path)
    assert (first.content, first.headers["content-type"]) == (b"headerfragment 0", "video/mp4")
    finish_clip(api, job["id"], 1)
    second = api.client.get(path)
    whole = b"headerfragment 0fragment 1"
    assert second.content == whole
    assert first.headers["etag"] != second.headers["etag"]

    for header, low, high in (
        ("bytes=0-5", 0, 5),
        ("bytes=4-8", 4, 8),
        ("bytes=16-", 16, 25),
        ("bytes=-3", 23, 25),
    ):
        part = api.client.get(path, headers={"Range": header})
        assert (part.status_code, part.content) == (206, whole[low : high + 1]), header
        assert part.headers["content-range"] == f"bytes {low}-{high}/26"
    assert api.client.get(path, headers={"Range": "bytes=26-"}).status_code == 416
    assert api.client.get(path, headers={"Range": "bytes=x"}).content == whole
    etag = second.headers["etag"]
    assert api.client.get(path, headers={"If-None-Match": etag}).status_code == 304
    assert api.client.get(path, headers={"If-Match": first.headers["etag"]}).status_code == 412
    stale = {"Range": "bytes=0-5", "If-Range": first.headers["etag"]}
    assert api.client.get(path, headers=stale).content == whole
    head = api.client.head(path)
    assert (head.content, head.headers["content-length"]) == (b"", "26")
    finish_clip(api, job["id"], 2)
    succeed_now(api, job["id"])
    assert api.client.get(path).content == VIDEO


def succeed_now(api: Api, job_id: str) -> None:
    job = api.services.journal.read(job_id)
    video = put(api, job_id, "video-1.mp4", VIDEO)
    entry = Succeeded(at=utcnow(), attempt=job.attempt, video=video, duration_s=7.0, gpu_seconds=0.0)
    api.services.journal.append(job, entry)


def test_a_signed_playlist_has_signed_parts_good_for_as_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = create_key(api.store, "ada")
    bearer = {"Authorization": f"Bearer {key.token}"}
    job = api.client.post("/v1/generate", files=form(), headers=bearer).json()
    succeed(api, job["id"])
    links = api.client.post(
        f"/v1/jobs/{job['id']}/signed-urls", json={"expires_in": 60}, headers=bearer
    ).json()
    folder = f"/v1/jobs/{job['id']}/"
    text = api.client.get(links["stream"]).text
    parts = check_playlist(text, [1.0], ended=True)
    assert [api.client.get(folder + part).status_code for part in parts] == [200, 200]
    assert api.client.get(links["preview"]).content == VIDEO
    for unsigned in [folder + "stream.m3u8", folder + parts[1].partition("?")[0]]:
        assert api.client.get(unsigned).status_code == 401
    other = folder + parts[1].replace("/0.m4s", "/header.mp4")
    assert api.client.get(other).status_code == 403
    plain = api.client.get(folder + "stream.m3u8", headers=bearer).text
    assert "signature" not in plain
    late = time.time() + 61
    monkeypatch.setattr("server.delivery.signing.time.time", lambda: late)
    assert api.client.get(folder + parts[1]).json()["code"] == "bad_signature"


@pytest.mark.slow
def test_a_player_plays_what_a_worker_makes_while_and_after_it_renders(tmp_path: Path) -> None:
    """libavformat's own HLS player over HTTP, against real workers: pictures and sound without a gap."""
    stack = Stack.create(tmp_path, FakeSettings(), min_free_bytes=0)
    try:
        stack.start_reaper()
        stack.start_worker()
        job = stack.wait(stack.submit("one", num_clips=3))
        settings = stack.settings.model_copy(update={"redis_url": stack.redis.url})
        with serving(create_app(settings)) as live:
            for name in ("stream.m3u8", "preview.mp4"):
                with av.open(f"{live.url}/v1/jobs/{job.id}/{name}") as player:
                    times = [frame.time for frame in player.decode(video=0)]
                assert np.diff(times) == pytest.approx(1 / FPS, abs=1e-3)
                assert len(times) == job.submitted.params.num_frames
                with av.open(f"{live.url}/v1/jobs/{job.id}/{name}") as player:
                    sound = list(player.decode(audio=0))
                total = sum(frame.samples for frame in sound) / sound[0].sample_rate
                assert total == pytest.approx(job.submitted.params.num_frames / FPS, abs=0.13)
    finally:
        stack.close()
