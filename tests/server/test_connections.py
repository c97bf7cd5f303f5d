"""What clients may do with connections: how many one may hold, and for how long without reading."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from contract.network import network_of
from jobs.artifacts import FolderStore
from jobs.cards import publish_card
from server import app as application
from server.app import create_app
from server.protocol import BoundedHttpProtocol
from tests.server.conftest import CARD, make_settings, serving, wait_for


@pytest.mark.skipif(sys.platform != "linux", reason="a second loopback address is needed")
def test_one_client_cannot_hold_all_connections(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "MOST_CONNECTIONS", 20)
    settings = make_settings(tmp_path, redis_url)
    publish_card(FolderStore(settings.storage_dir), CARD)
    with serving(create_app(settings)) as live, ExitStack() as held:
        for _ in range(30):  # a head that is never finished
            greedy = socket.create_connection(("127.0.0.1", live.port), 10, ("127.0.0.2", 0))
            held.enter_context(greedy)
            greedy.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert greedy.recv(100).startswith(b"HTTP/1.1 503 ")
        for _ in range(5):
            assert httpx.get(f"{live.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's table of connections is read")
def test_a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "stall_seconds", 1.0)
    app, ended = FastAPI(), threading.Semaphore(0)

    @app.get("/")
    def endless() -> StreamingResponse:
        def chunks() -> Iterator[bytes]:
            try:
                while True:
                    yield bytes(2**16)
            finally:
                ended.release()

        return StreamingResponse(chunks())

    def asked(port: int) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return client

    with serving(app) as live:
        with asked(live.port) as slow:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert slow.recv(2**18)
                time.sleep(0.02)
            assert not ended.acquire(blocking=False)
        with asked(live.port):
            wait_for(lambda: not _is_connected(live.port), 20)


def _is_connected(port: int) -> bool:
    """Whether the server on that port has a connection."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "01" for line in lines)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_that_one_client_may_choose_among_count_as_one(address: str, network: str) -> None:
    assert network_of(address) == network
