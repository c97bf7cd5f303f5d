"""Uploads over a real socket: slow, endless, cut off, lying, too many."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.settings import as_environment
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from server.protocol import BoundedHttpProtocol
from tests.server.conftest import CARD, Live, make_settings, wait_for
from tests.server.inputs import form

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HEAD = b"\r\n".join(
    (
        b"POST /v1/generate HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Content-Type: multipart/form-data; boundary=x",
        b"%s",
        b"",
        b"",
    )
)
DISPOSITION = b'form-data; name="person_image"; filename="../../../../tmp/owned.png"'
FILE_PART = b"--x\r\nContent-Disposition: " + DISPOSITION + b"\r\n\r\n"


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=20)


def answer_of(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
            if b"\r\n\r\n" in received and received.endswith(b"}"):
                break
    except ConnectionResetError:
        pass
    return received


def nothing_left(live: Live) -> bool:
    store = live.services.store
    return not store.list_names("scratch") and not store.list_names("jobs")


def test_a_trickling_upload_is_cut_off_at_the_deadline(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(HEAD % b"Content-Length: 1000000" + FILE_PART)
        started = time.monotonic()
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

        trickling = threading.Thread(target=trickle)
        trickling.start()
        answer = answer_of(connection)
        stop.set()
        trickling.join()
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"upload_timeout" in answer
    assert time.monotonic() - started < 10
    wait_for(lambda: nothing_left(live), 5)


def test_an_endless_upload_is_refused_at_the_cap_and_the_connection_closed(live: Live) -> None:
    limit = live.services.settings.max_image_bytes
    sent = 0
    with connect(live) as connection:
        connection.sendall(HEAD % b"Transfer-Encoding: chunked")
        block = FILE_PART + b"\0" * 2**20
        try:
            while sent < 20 * limit:
                connection.sendall(b"%x\r\n" % len(block) + block + b"\r\n")
                sent += len(block)
                block = b"\0" * 2**20
        except OSError:
            pass
        answer = answer_of(connection)
    assert sent < 4 * limit, "the server went on reading"
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    wait_for(lambda: nothing_left(live), 5)


def test_a_length_over_the_cap_is_refused_before_the_body_comes(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(HEAD % b"Content-Length: 99999999999")
        answer = answer_of(connection)
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"request_too_large" in answer


def test_endless_headers_are_refused(live: Live) -> None:
    sent = 0
    with connect(live) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        try:
            while sent < 10_000_000:
                connection.sendall(b"a" * 10_000)
                sent += 10_000
        except OSError:
            pass
        answer = answer_of(connection)
    assert sent < 10_000_000, "the server went on reading"
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(
    live: Live, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 0.3)
    with connect(live) as connection:
        connection.sendall(begun)
        assert b" 400 " in connection.recv(1000).split(b"\r\n")[0]
        assert connection.recv(1000) == b""


def test_a_connection_serves_many_requests_with_large_bodies(live: Live) -> None:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        for _ in range(3):
            big = form(audio=b"RIFF0000WAVE" + b"\0" * 2_000_000)
            assert client.post("/v1/generate", files=big).status_code == 422
            assert client.get("/healthz").status_code == 200


def _open_files() -> set[str]:
    """What this process, in which the server runs, has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def _holds_an_upload() -> bool:
    return any(file.startswith("/memfd:upload") for file in _open_files())


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_away_leaves_nothing(live: Live, how: str) -> None:
    with connect(live) as connection:
        connection.sendall(HEAD % b"Content-Length: 1000000" + FILE_PART + b"\0" * 100_000)
        wait_for(_holds_an_upload, 5)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: nothing_left(live) and not _holds_an_upload(), 5)
    assert httpx.get(f"{live.url}/healthz").status_code == 200


def test_a_file_name_of_the_client_is_never_used(live: Live) -> None:
    files = form()
    answer = httpx.post(
        f"{live.url}/v1/generate", files=[(n, ("/tmp/owned.png", *v[1:]) if v[0] else v) for n, v in files]
    )
    assert answer.status_code == 202
    assert not os.path.exists("/tmp/owned.png")  # noqa: PTH110
    assert answer.text.find("owned") == -1


def test_too_many_uploads_at_once_are_refused_with_429(live: Live) -> None:
    limit = live.services.settings.max_concurrent_uploads
    held = [connect(live) for _ in range(limit // 2)]  # a tenant may hold as many places as it leaves free
    try:
        for connection in held:
            connection.sendall(HEAD % b"Content-Length: 1000000" + FILE_PART)
        wait_for(lambda: live.services.uploads.held == limit // 2, 10)
        answer = httpx.post(f"{live.url}/v1/generate", files=form(), timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert httpx.get(f"{live.url}/healthz").status_code == 200
    finally:
        for connection in held:
            connection.close()
    wait_for(lambda: live.services.uploads.held == 0 and nothing_left(live), 10)


@pytest.mark.parametrize("length", [10**5, 10**7], ids=["in memory", "on disk"])
def test_a_file_on_its_way_in_has_no_name(live: Live, length: int) -> None:
    scratch = FolderStore(live.services.settings.storage_dir).scratch()
    place = "/memfd:upload" if length < 2**20 else str(scratch)
    with connect(live) as connection:
        connection.sendall(HEAD % b"Content-Length: %d" % length + FILE_PART + b"x" * 50_000)
        wait_for(lambda: any(file.startswith(place) for file in _open_files()), 10)
        assert [path for path in scratch.rglob("*") if path.is_file()] == []
    wait_for(lambda: nothing_left(live), 10)


@contextmanager
def server_process(folder: Path, redis_url: str, **changes: object) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: (url, pid)."""
    settings = make_settings(folder, redis_url)
    publish_card(FolderStore(settings.storage_dir), CARD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "COINTERACT_DATA_DIR": str(folder),
        "COINTERACT_REDIS_URL": redis_url,
        "COINTERACT_PORT": str(port),
        "COINTERACT_MIN_FREE_BYTES": "0",
        "COINTERACT_MAX_QUEUED_JOBS": "20",
        **as_environment(changes),
    }
    program = "from contract.settings import Settings; from server.app import serve; serve(Settings())"
    with subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT) as process:
        try:
            wait_for(lambda: answers(port), 60)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_under_overload_and_large_uploads(tmp_path: Path, redis_url: str) -> None:
    big = ("big.png", b"\x89PNG\r\n\x1a\n" + b"\0" * (15 * 2**20), "image/png")
    statuses: list[int] = []

    def send(count: int, **changes: Any) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(count):
                statuses.append(client.post("/v1/generate", files=form(**changes)).status_code)

    def crowd(size: int, count: int, **changes: Any) -> None:
        threads = [threading.Thread(target=send, args=(count,), kwargs=changes) for _ in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with server_process(tmp_path, redis_url) as (url, pid):
        crowd(4, 2, person_image=big)
        crowd(4, 5)
        before = resident_bytes(pid)
        crowd(8, 2, person_image=big)
        crowd(16, 20)
        grown = resident_bytes(pid) - before
    assert set(statuses) == {202, 422, 429}
    assert statuses.count(202) == 20
    assert grown < 50 * 2**20


def test_pipelined_requests_after_a_refusal_do_not_confuse_the_server(live: Live) -> None:
    with connect(live) as connection:
        body = b"--x\r\nbroken"
        request = HEAD % b"Content-Length: %d" % len(body) + body
        connection.sendall(request + b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    assert b" 400 " in received.split(b"\r\n")[0]
    assert received.rstrip().endswith(b'{"status":"ok"}')
