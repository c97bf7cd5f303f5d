"""Getting files: whole, in part, and only if they have changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime

import httpx
import pytest

from server.delivery.events import EVENT_STREAM
from tests.server.conftest import Api, Live
from tests.server.inputs import form
from tests.server.journals import VIDEO, succeed

SIZE = len(VIDEO)


@pytest.fixture
def done(api: Api) -> str:
    """The path of a finished video."""
    job_id = api.client.post("/v1/generate", files=form()).json()["id"]
    succeed(api, job_id)
    return f"/v1/jobs/{job_id}/video"


def test_the_video_comes_whole_with_its_hash_as_etag(api: Api, done: str) -> None:
    answer = api.client.get(done)
    assert (answer.status_code, answer.content) == (200, VIDEO)
    assert answer.headers["etag"] == f'"{hashlib.sha256(VIDEO).hexdigest()}"'
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    head = api.client.head(done)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(VIDEO)))


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes=5-{SIZE * 2}", 5, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
    ],
)
def test_one_range_is_served_as_206(api: Api, done: str, header: str, first: int, last: int) -> None:
    answer = api.client.get(done, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, VIDEO[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0", "bytes=0-1,3-4", "bytes=" + "0-," * 500])
def test_ranges_outside_and_many_ranges_are_416(api: Api, done: str, header: str) -> None:
    answer = api.client.get(done, headers={"Range": header})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "header",
    [
        "bytes=a-b",
        "bytes=9-3",
        "lines=0-1",
        "lines=0-1,4-5",
        "bytes=",
        "bytes=-",
        "bytes 0-1",
        "bytes=1_0-20",
        "bytes=--5",
        "bytes=5",
    ],
)
def test_a_malformed_range_is_ignored(api: Api, done: str, header: str) -> None:
    answer = api.client.get(done, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, VIDEO)


def test_conditional_requests_follow_the_etag(api: Api, done: str) -> None:
    etag = api.client.get(done).headers["etag"]
    for matching in (etag, f'"x", {etag}', "*", f"W/{etag}"):
        assert api.client.get(done, headers={"If-None-Match": matching}).status_code == 304
    assert api.client.get(done, headers={"If-None-Match": '"x"'}).status_code == 200
    part = {"Range": "bytes=0-1"}
    assert api.client.get(done, headers={**part, "If-Range": etag}).status_code == 206
    assert api.client.get(done, headers={**part, "If-Range": '"x"'}).status_code == 200
    assert api.client.get(done, headers={"If-Match": '"x"'}).status_code == 412
    assert api.client.get(done, headers={"If-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Modified-Since": "{modified}"}, 304),
        ({"If-Modified-Since": "{later}"}, 304),
        ({"If-Modified-Since": "{earlier}"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Modified-Since": "{modified}", "If-None-Match": '"x"'}, 200),
        ({"If-Unmodified-Since": "{modified}"}, 200),
        ({"If-Unmodified-Since": "{later}"}, 200),
        ({"If-Unmodified-Since": "{earlier}"}, 412),
        ({"If-Unmodified-Since": "Mon, 99 Foo 2026"}, 200),
        ({"If-Unmodified-Since": "{earlier}", "If-Match": "{etag}"}, 200),
        ({"If-Match": "W/{etag}"}, 412),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"x,y", {etag}'}, 200),
        ({"If-Match": "{etag}", "If-None-Match": "{etag}"}, 304),
        ({"If-None-Match": "{etag}", "Range": "bytes=0-1"}, 304),
        ({"Range": "bytes=0-1", "If-Range": "{modified}"}, 206),
        ({"Range": "bytes=0-1", "If-Range": "{later}"}, 200),
        ({"Range": "bytes=0-1", "If-Range": "W/{etag}"}, 200),
        ({"Range": "bytes=999999-", "If-Range": '"x"'}, 200),
    ],
)
def test_conditional_requests_follow_rfc_9110(
    api: Api, done: str, headers: dict[str, str], status: int
) -> None:
    whole = api.client.get(done).headers
    moment = parsedate_to_datetime(whole["last-modified"])
    words = {
        "etag": whole["etag"],
        "modified": whole["last-modified"],
        "earlier": format_datetime(moment - timedelta(seconds=1), usegmt=True),
        "later": format_datetime(moment + timedelta(hours=1), usegmt=True),
    }
    asked = {name: value.format(**words) for name, value in headers.items()}
    answer = api.client.get(done, headers=asked)
    assert answer.status_code == status
    if status != 412:
        assert (answer.headers["etag"], answer.headers["last-modified"]) == (words["etag"], words["modified"])
    head = api.client.head(done, headers=asked)
    assert head.status_code == (200 if status == 206 else status), "a HEAD knows no ranges"


def test_a_condition_may_come_in_several_headers(api: Api, done: str) -> None:
    etag = api.client.get(done).headers["etag"]
    tags = [("If-None-Match", '"x"'), ("If-None-Match", etag)]
    assert api.client.get(done, headers=tags).status_code == 304
    ranges = [("Range", "bytes=0-1")] * 50
    answer = api.client.get(done, headers=ranges)
    assert answer.status_code in (206, 416)
    assert len(answer.content) < SIZE


def test_pages_are_conditional_too(api: Api) -> None:
    for path in ("/", "/docs", "/static/studio/app.js"):
        first = api.client.get(path)
        assert first.status_code == 200
        answer = api.client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (answer.status_code, answer.content) == (304, b""), path
        assert api.client.get(path, headers={"Range": "bytes=x"}).content == first.content


def test_every_get_answers_a_head_with_the_same_headers_and_no_body(live: Live) -> None:
    with httpx.Client(base_url=live.url) as client:
        job_id = client.post("/v1/generate", files=form()).json()["id"]
        document = client.get("/openapi.json").json()
        paths = [path for path, methods in document["paths"].items() if "get" in methods]
        assert len(paths) > 8
        assert all("head" not in methods for methods in document["paths"].values())
        for path in [*paths, "/", "/docs", "/static/style.css", "/openapi.json"]:
            url = path.format_map(defaultdict(lambda: "audio", job_id=job_id, clip=0))
            head = client.head(url)
            assert head.content == b""
            if path.endswith("/events"):
                assert head.status_code == 200
                assert head.headers["content-type"].startswith(EVENT_STREAM)
                continue
            get = client.get(url)
            assert (head.status_code, head.headers["content-type"]) == (
                get.status_code,
                get.headers["content-type"],
            ), path
            if path not in ("/metrics", "/readyz"):
                assert head.headers["content-length"] == get.headers["content-length"], path


def test_a_file_that_is_not_whole_is_never_served(api: Api, done: str) -> None:
    job_id = done.split("/")[3]
    path = api.store.local_path(f"jobs/{job_id}/video-1.mp4")
    path.write_bytes(VIDEO[:-1])
    assert api.client.get(done).status_code == 409
