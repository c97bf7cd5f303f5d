"""Jobs made from other jobs, rendered by real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from starlette.testclient import TestClient

from contract.settings import Settings
from contract.state import Job
from model.checkpoints.tiny import write_tiny_checkpoint
from model.media import read_motion, write_motion
from server.app import create_app
from tests.faults.stack import Stack, eventually
from tests.server.inputs import audio_bytes, form
from workers.engines.fake import FakeSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    # Unsigned: content credentials say when a file was made, so no two signed ones are equal.
    stack = Stack.create(tmp_path, FakeSettings(), min_free_bytes=0, provenance=False)
    yield stack
    stack.close()


@pytest.fixture
def api(stack: Stack) -> Iterator[TestClient]:
    settings = Settings.model_validate({**stack.settings.model_dump(), "redis_url": stack.redis.url})
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def made(api: TestClient, stack: Stack, path: str, timeout_s: float = 60.0, **options: Any) -> Job:
    """The job that this request makes, when it has succeeded."""
    answer = api.post(path, **options)
    assert answer.status_code == 202, answer.text
    return stack.wait(answer.json()["id"], timeout_s=timeout_s)


def hashes(job: Job) -> list[str]:
    return [clip.video.sha256 for clip in job.clips]


def test_equal_seeds_give_equal_bytes_and_others_differ_from_the_clip_on(
    stack: Stack, api: TestClient
) -> None:
    stack.start_reaper()
    stack.start_worker()
    first = stack.wait(stack.submit("one", "two", num_clips=3, seed=3, keep_motion=True))
    assert all(stack.path(first.id, clip.motion).exists() for clip in first.clips if clip.motion)

    same = made(api, stack, f"/v1/jobs/{first.id}/clips/1/redo", json={"seed": 3})
    assert (hashes(same), same.video) == (hashes(first), first.video)
    assert [clip.attempt for clip in same.clips] == [0, 1, 1]
    assert same.gpu_seconds < first.gpu_seconds

    other = made(api, stack, f"/v1/jobs/{first.id}/clips/1/redo", json={"prompt": "three"})
    assert [a == b for a, b in zip(hashes(other), hashes(first), strict=True)] == [True, False, False]
    again = made(api, stack, f"/v1/jobs/{other.id}/clips/2/redo", json={"seed": 3})
    assert hashes(again) == hashes(other), "a job that shares clips can be the parent of another"

    unbroken = stack.wait(stack.submit("one", "three", num_clips=3, seed=3))
    assert (hashes(unbroken), unbroken.video) == (hashes(other), other.video)
    assert unbroken.clips[2].motion is not None
    motion = stack.store.root / "jobs" / unbroken.id / unbroken.clips[2].motion.name
    eventually(lambda: not motion.exists(), what="the end of frames that are not to be kept")


def test_signed_videos_are_equal_but_for_their_signature(tmp_path: Path) -> None:
    stack = Stack.create(tmp_path, FakeSettings(), min_free_bytes=0)
    settings = Settings.model_validate({**stack.settings.model_dump(), "redis_url": stack.redis.url})
    try:
        stack.start_reaper()
        stack.start_worker()
        first = stack.wait(stack.submit("one", "two", num_clips=3, seed=3, keep_motion=True))
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as api:
            same = made(api, stack, f"/v1/jobs/{first.id}/clips/1/redo", json={"seed": 3})
        assert same.content_sha256 is not None
        assert same.content_sha256 == first.content_sha256
        assert [clip.fragment for clip in same.clips[:1]] == [clip.fragment for clip in first.clips[:1]]
        fragments = [[clip.fragment and clip.fragment.sha256 for clip in job.clips] for job in (same, first)]
        assert fragments[0] == fragments[1]
        assert hashes(same)[0] == hashes(first)[0], "a shared clip keeps its signature"
    finally:
        stack.close()


def test_a_retry_renders_what_is_missing_and_nothing_where_all_is_there(
    stack: Stack, api: TestClient
) -> None:
    stack.start_reaper()
    stack.start_worker()
    broken = stack.submit("one", "fault:error", num_clips=2, seed=3, keep_motion=True)
    job = stack.journal.read(broken)
    while not job.state.is_terminal:
        job = stack.journal.read(broken)
    assert (job.state, len(job.clips)) == ("failed", 1)
    redone = made(api, stack, f"/v1/jobs/{broken}/clips/1/redo", json={"prompt": "two"})
    unbroken = stack.wait(stack.submit("one", "two", num_clips=2, seed=3))
    assert redone.video == unbroken.video
    retried = made(api, stack, f"/v1/jobs/{redone.id}/retry")
    assert [clip.attempt for clip in retried.clips] == [0, 0]
    assert (retried.video, retried.duration_s) == (redone.video, redone.duration_s)


def test_an_extension_is_as_long_as_both_recordings(stack: Stack, api: TestClient) -> None:
    stack.start_reaper()
    stack.start_worker()
    first = stack.wait(stack.submit("one", num_clips=2, keep_motion=True))
    longer = made(
        api,
        stack,
        f"/v1/jobs/{first.id}/extend",
        files=[("audio", ("more.wav", audio_bytes(seconds=4.0))), ("prompt", (None, "two"))],
    )
    assert hashes(longer)[0] == hashes(first)[0]
    assert hashes(longer)[1] != hashes(first)[1]
    assert longer.video is not None
    with av.open(str(stack.path(longer.id, longer.video))) as video:
        assert video.streams.video[0].frames == 140 + 100
        assert float(video.duration or 0) / av.time_base == pytest.approx(9.6, abs=0.1)


def test_router_maps_are_kept_on_request_and_go_to_jobs_that_share_the_clip(
    stack: Stack, api: TestClient, tmp_path: Path
) -> None:
    stack.start_reaper()
    stack.start_worker()
    eventually(lambda: api.get("/v1/models").json()["data"], what="a checkpoint")
    asked = form(audio=audio_bytes(seconds=5.0), router_maps="true", size="64x64")
    job = made(api, stack, "/v1/generate", files=asked)
    redone = made(api, stack, f"/v1/jobs/{job.id}/clips/1/redo")
    for one in (job, redone):
        links = api.get(f"/v1/jobs/{one.id}").json()["urls"]["router_maps"]
        for link, count in zip(links, (80, 45), strict=True):
            answer = api.get(link)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
            (tmp_path / "map.mp4").write_bytes(answer.content)
            with av.open(str(tmp_path / "map.mp4")) as video:
                assert (video.streams.video[0].frames, video.streams.video[0].width) == (count, 16)
    plain = made(api, stack, "/v1/generate", files=form(size="64x64"))
    assert api.get(f"/v1/jobs/{plain.id}").json()["urls"]["router_maps"] == [None]
    answer = api.get(f"/v1/jobs/{plain.id}/clips/0/router_map")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_result")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_network_gives_the_bytes_of_an_unbroken_render(stack: Stack, api: TestClient) -> None:
    write_tiny_checkpoint(stack.folder / "tiny", seed=0)
    stack.checkpoint_folder, stack.checkpoint, stack.side = stack.folder / "tiny", "tiny-random", 128
    stack.start_reaper()
    stack.start_worker()
    plain = stack.submit("one", "two", num_clips=2, steps=2, seed=3, keep_motion=True)
    first = stack.wait(plain, timeout_s=250)
    same = made(api, stack, f"/v1/jobs/{first.id}/clips/1/redo", json={"seed": 3}, timeout_s=250)
    assert (hashes(same), same.video) == (hashes(first), first.video)
    assert same.clips[1].motion == first.clips[1].motion
    other = made(api, stack, f"/v1/jobs/{first.id}/clips/1/redo", json={"prompt": "x"}, timeout_s=250)
    assert [a == b for a, b in zip(hashes(other), hashes(first), strict=True)] == [True, False]


def test_kept_frames_are_the_rendered_ones_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (73, 64, 48, 3), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 48, dtype=np.uint8)[None, None, :, None], noise.shape)
    for name, frames in {"noise": noise, "smooth": smooth}.items():
        write_motion(frames, tmp_path / name)
        write_motion(frames, tmp_path / "again")
        assert np.array_equal(read_motion(tmp_path / name), frames)
        assert (tmp_path / name).read_bytes() == (tmp_path / "again").read_bytes()
    with (tmp_path / "older").open("wb") as file:
        np.save(file, noise)
    assert np.array_equal(read_motion(tmp_path / "older"), noise), "as jobs have it that an upgrade broke off"
