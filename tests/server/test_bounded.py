"""Bodies of strangers cost bounded time and memory: tried on a server in a process of its own."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.inputs import PERSON, SPEECH, form
from tests.server.test_submit import data_url
from tests.server.test_uploads import server_process

pytestmark = pytest.mark.slow

MIB = 2**20
REFUSALS = (
    *("too_many", "too_long", "malformed_body", "file_too_large", "invalid_value", "duplicate_field"),
    *("request_too_large", "unsupported_content_type"),
)
PERSON_URL, SPEECH_URL = data_url(PERSON, "image/png"), data_url(SPEECH, "audio/wav")
FILES = f'"person_image": "{PERSON_URL}", "audio": "{SPEECH_URL}"'


def percent_coded(megabytes: int) -> str:
    return '{"prompt": "x", "audio": "' + SPEECH_URL + '", "person_image": "data:image/png,' + (
        "%41" * (megabytes * MIB // 3) + '"}'
    )  # fmt: skip


BODIES = {
    "zeros": '{"prompt": [' + "0," * (2 * MIB) + "0]}",
    "lists": '{"prompt": ' + "[" * 4_000_000 + "]" * 4_000_000 + "}",
    "many lists": '{"prompt": [' + "[]," * (4 * MIB) + "0]}",
    "many objects": '{"metadata": {' + ",".join(f'"{n}":{{}}' for n in range(400_000)) + "}}",
    "percent": percent_coded(20),
    "long prompt": '{"prompt": "' + "x" * (22 * MIB) + '", ' + FILES + "}",
    "many prompts": f'{{"prompt": {json.dumps(["é" * 32_768] * 250, ensure_ascii=False)}, {FILES}}}',
    "many short prompts": '{"prompt": [' + '"x",' * 90_000 + '"x"]}',
    "digits": '{"seed": ' + "9" * (20 * MIB) + "}",
    "a key twice among many": "{" + "".join(f'"{n}":1,' for n in range(90_000)) + '"z":1,"z":2}',
}


@contextmanager
def probing(url: str) -> Iterator[list[float]]:
    """Ask for /healthz all the time; the list receives the seconds of each answer."""
    taken: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False) as client:
            while not stop.is_set():
                started = time.perf_counter()
                client.get(f"{url}/healthz", timeout=60)
                taken.append(time.perf_counter() - started)
                stop.wait(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        while not taken:
            time.sleep(0.01)
        yield taken
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[tuple[str, int]]:
    with server_process(tmp_path_factory.mktemp("bounded"), redis_url) as running:
        yield running


@pytest.mark.parametrize("route", ["validate", "generate"])
@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_json_is_refused_without_holding_up_others(
    server: tuple[str, int], route: str, name: str
) -> None:
    url, pid = server
    httpx.post(f"{url}/v1/validate", files=form(), timeout=60).raise_for_status()
    process = psutil.Process(pid)
    before, body = process.memory_info().rss, BODIES[name].encode()
    with probing(url) as taken:
        answer = httpx.post(
            f"{url}/v1/{route}", content=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        most = process.memory_info().rss
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] in REFUSALS
    assert process.memory_info().rss - before < 100 * MIB
    assert most - before < 150 * MIB
    # Other tests may be running beside this one: the median is what a blocked loop would change.
    assert statistics.median(taken) < 0.5


def endless(megabytes: int) -> Iterator[bytes]:
    """A body of which the head says no length."""
    return (b"{" + b" " * (MIB - 1) for _ in range(megabytes))


@pytest.mark.parametrize(
    ("method", "route", "headers"),
    [
        ("POST", "retry", {}),
        ("POST", "clips/0/redo", {}),
        ("POST", "extend", {}),
        ("PATCH", "", {"Content-Type": "application/json"}),
        ("POST", "signed-urls", {"Content-Type": "application/json"}),
    ],
)
@pytest.mark.parametrize("shape", ["endless", "zeros", "many objects"])
def test_no_route_of_a_job_takes_a_large_body_into_memory(
    server: tuple[str, int], method: str, route: str, headers: dict[str, str], shape: str
) -> None:
    url, pid = server
    job = httpx.post(f"{url}/v1/generate", files=form(), timeout=60).raise_for_status().json()["id"]
    process = psutil.Process(pid)
    before, most = process.memory_info().rss, 0
    body = endless(300) if shape == "endless" else BODIES[shape].encode()

    def sent() -> Iterator[bytes]:
        nonlocal most
        for chunk in body if not isinstance(body, bytes) else (body,):
            most = max(most, process.memory_info().rss)
            yield chunk

    with probing(url) as taken:
        answer = httpx.request(
            method, f"{url}/v1/jobs/{job}/{route}".rstrip("/"), content=sent(), headers=headers, timeout=60
        )
        most = max(most, process.memory_info().rss)
    httpx.delete(f"{url}/v1/jobs/{job}").raise_for_status()
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] in REFUSALS
    assert most - before < 60 * MIB
    assert statistics.median(taken) < 0.5


@pytest.mark.parametrize("key", ["prompt", "seed"])
def test_a_key_given_twice_is_refused(server: tuple[str, int], key: str) -> None:
    body = f'{{"prompt": "x", "seed": 1, "{key}": 2, {FILES}}}'
    answer = httpx.post(
        f"{server[0]}/v1/validate", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "duplicate_field",
        key,
    )


@pytest.mark.parametrize("path", ["/healthz", "/v1/jobs", "/openapi.json", "/nowhere"])
def test_a_body_that_nobody_reads_does_not_keep_the_connection(server: tuple[str, int], path: str) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000\r\n\r\nx".encode()
        )
        received = b""
        while block := connection.recv(65_536):
            received += block
    assert received.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
def test_a_client_that_is_still_sending_gets_its_answer(server: tuple[str, int], path: str) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    parts = [b"x" * 30_000] * 20
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {sum(map(len, parts))}\r\n\r\n"
        connection.sendall(head.encode())
        received = connection.recv(65_536)
        for part in parts:
            connection.sendall(part)  # fails if the server has closed the connection
        while block := connection.recv(65_536):
            received += block
    assert received.startswith(b"HTTP/1.1 40")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_head_that_is_too_long_is_refused_in_one_piece_too(server: tuple[str, int], method: str) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    filler = "".join(f"X-{number}: {'y' * 7_000}\r\n" for number in range(10))
    body = "hello"
    head = f"{method} /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{filler}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall((head + body).encode())
        received = b""
        while block := connection.recv(65_536):
            received += block
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1") == 1


def test_a_body_that_trickles_is_cut_off_on_every_route(tmp_path: Path, redis_url: str) -> None:
    with server_process(tmp_path, redis_url, upload_timeout_s=1.0) as (url, _):
        job = httpx.post(f"{url}/v1/generate", files=form(), timeout=60).json()["id"]
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = f"POST /v1/jobs/{job}/signed-urls HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            fields = "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall((head + fields).encode() + b"{")
            received = b""
            while block := connection.recv(65_536):
                received += block
    assert b" 408 " in received.split(b"\r\n")[0]
    assert b"upload_timeout" in received
