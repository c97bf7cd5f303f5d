"""Input URLs and webhooks on the operator's own networks: there, and nowhere else, and http: only there."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook

from contract.network import PrivateNetworks
from contract.settings import Settings
from server.delivery.standard_webhooks import webhook_secret
from server.fetch import Fetched, Fetcher, FetchError, FetchFailed, FetchRefused
from tests.server.conftest import ApiFactory, wait_for
from tests.server.inputs import audio_bytes, form, image_bytes
from tests.server.journals import start

pytestmark = pytest.mark.slow

PERSON = image_bytes()


class Files(http.server.BaseHTTPRequestHandler):
    """A file server, and a receiver of webhooks."""

    def do_GET(self) -> None:
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        body = PERSON if "png" in self.path else audio_bytes(seconds=1.0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((dict(self.headers), body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def file_server() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.told = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def files() -> Iterator[Any]:
    with file_server() as server:
        yield server


def to(*addresses: str) -> Any:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolver


def fetch(url: str, allowed: str, resolver: Any = None) -> Fetched:
    networks = PrivateNetworks.parse(allowed.split(",") if allowed else ())
    fetcher = Fetcher(5.0, private=networks, **({"resolver": resolver} if resolver else {}))
    return asyncio.run(fetcher.fetch(url, io.BytesIO(), 10**6))


@pytest.mark.parametrize(
    "allowed", ["127.0.0.0/8", "127.0.0.1", "10.0.0.0/8,127.0.0.0/8", "::1,127.0.0.1/32"]
)
def test_a_file_on_a_network_of_ones_own_is_fetched_by_http(files: Any, allowed: str) -> None:
    url = f"http://store.example:{files.server_port}/a.png"
    got = fetch(url, allowed, to("127.0.0.1"))
    assert got.sha256 == hashlib.sha256(PERSON).hexdigest()


@pytest.mark.parametrize(
    ("allowed", "addresses"),
    [
        ("", ("127.0.0.1",)),  # nothing is allowed
        ("10.0.0.0/8", ("127.0.0.1",)),  # another network is
        ("store.example", ("127.0.0.1",)),  # an allowed host that resolves to this machine
        ("store.example", ("169.254.169.254",)),  # or to where clouds tell secrets
        ("store.example", ("fe80::1",)),
        ("store.example", ("::ffff:127.0.0.1",)),
        ("store.example", ("8.8.8.8",)),  # public, but by http:
        ("127.0.0.0/8", ("127.0.0.1", "8.8.8.8")),  # one address among others
        ("127.0.0.0/8", ("127.0.0.1", "169.254.169.254")),
        ("other.example", ("10.0.0.1",)),
        ("store.example:1", ("10.0.0.1",)),  # another port
        ("127.0.0.0/8", ()),
    ],
)
def test_http_leads_nowhere_else(
    files: Any, allowed: str, addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", never)
    with pytest.raises(FetchRefused):
        fetch(f"http://store.example:{files.server_port}/a.png", allowed, to(*addresses))


def test_a_named_host_may_have_addresses_of_private_use_only() -> None:
    networks = PrivateNetworks.parse(["Minio.internal", "db.internal:9000", "fd00:1::/32"])
    assert networks.allows("minio.INTERNAL", 80, "10.1.2.3")
    assert networks.allows("minio.internal", 80, "192.168.0.9")
    assert networks.allows("minio.internal", 80, "fd12::1")
    assert networks.allows("db.internal", 9000, "::ffff:172.16.0.1")
    assert networks.allows("any.example", 80, "fd00:1::5")
    for host, port, address in [
        ("minio.internal", 80, "127.0.0.1"),
        ("minio.internal", 80, "0.0.0.0"),
        ("minio.internal", 80, "169.254.169.254"),
        ("minio.internal", 9000, "fd00:ec2::254"),
        ("minio.internal", 9000, "100.100.100.200"),
        ("minio.internal", 80, "fe80::1%eth0"),
        ("minio.internal", 80, "224.0.0.1"),
        ("minio.internal", 80, "nonsense"),
        ("xminio.internal", 80, "10.1.2.3"),
        ("minio.internal.evil.example", 80, "10.1.2.3"),
        ("db.internal", 9001, "10.1.2.3"),
        ("any.example", 80, "fd00:2::5"),
        ("any.example", 80, "10.1.2.3"),
    ]:
        assert not networks.allows(host, port, address), (host, port, address)


def test_a_second_answer_of_the_name_server_changes_nothing(files: Any) -> None:
    answers = iter([("127.0.0.1",), ("169.254.169.254",)])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    assert fetch(f"http://store.example:{files.server_port}/a.png", "127.0.0.0/8", rebinding).size > 0
    assert next(answers) == ("169.254.169.254",), "a second look-up would have got this"


def test_a_redirect_from_an_allowed_host_is_not_followed(files: Any) -> None:
    with pytest.raises(FetchFailed, match="302"):
        fetch(f"http://127.0.0.1:{files.server_port}/redirect", "127.0.0.0/8")


@pytest.mark.parametrize(
    "entry", ["10.0.0.0/33", "exa mple", "host:0", "host:x", "*", "http://x", "a/b", "-x"]
)
def test_a_setting_that_is_no_network_does_not_start(entry: str) -> None:
    with pytest.raises(ValidationError, match="allowed_networks"):
        Settings(allowed_networks=(entry,))


def test_submits_take_http_urls_and_webhooks_there_and_nothing_more(make_api: ApiFactory, files: Any) -> None:
    api = make_api(allowed_networks="127.0.0.0/8")
    base = f"http://127.0.0.1:{files.server_port}"
    body = {
        "prompt": "x",
        "person_image": f"{base}/a.png",
        "audio": f"{base}/a.wav",
        "webhook_url": f"{base}/hook",
    }
    answer = api.client.post("/v1/generate", json=body)
    assert answer.status_code == 202, answer.text
    start(api, answer.json()["id"])
    wait_for(lambda: bool(files.told), 20)
    headers, told = files.told[0]
    lowered = {name.lower(): value for name, value in headers.items()}
    assert json.loads(told)["type"] == "job.started"
    Webhook(webhook_secret(api.store, None)).verify(told, lowered)
    assert api.client.post("/v1/generate", files=form(person_image=f"{base}/a.png")).status_code == 202
    for field, url in [
        ("audio", "http://8.8.8.8/a.wav"),
        ("audio", "http://169.254.169.254/a.wav"),
        ("audio", f"{base}/redirect"),
        ("webhook_url", "http://169.254.169.254/x"),
        ("webhook_url", "https://10.0.0.1/x"),
        ("webhook_url", "http://8.8.8.8/x"),
    ]:
        refused = api.client.post("/v1/generate", json={**body, field: url})
        assert (refused.status_code, refused.json()["field"]) == (422, field), url
        assert refused.json()["code"] in ("fetch_refused", "fetch_failed"), url


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x", "https://localhost/x", "https://[::1]/x", "https://10.0.0.1/", "http://8.8.8.8/"],
)
def test_a_webhook_to_which_nothing_could_be_delivered_is_refused_at_once(
    make_api: ApiFactory, url: str
) -> None:
    answer = make_api().client.post("/v1/generate", files=form(webhook_url=url))
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422, "fetch_refused", "webhook_url"
    )  # fmt: skip


def test_a_name_server_that_does_not_answer_holds_up_a_submit_for_a_moment_only(make_api: ApiFactory) -> None:
    api = make_api()

    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    object.__setattr__(api.services.fetcher, "resolver", silent)
    began = time.monotonic()
    answer = api.client.post("/v1/generate", files=form(webhook_url="https://slow.example/x"))
    assert answer.status_code == 202
    assert time.monotonic() - began < 30


def test_names_are_looked_up_in_threads_of_their_own(make_api: ApiFactory, monkeypatch: Any) -> None:
    """A hundred names whose look-up hangs leave all threads for the disk free."""
    release = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [] if release.wait(30) else None)
    resolver = Fetcher(1.0).resolver

    async def story() -> str:
        hanging = [asyncio.create_task(resolver("slow.example", 443)) for _ in range(100)]  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        answer = await asyncio.wait_for(asyncio.to_thread(lambda: "the disk answers"), 10)
        release.set()
        await asyncio.gather(*hanging)
        return answer

    assert asyncio.run(story()) == "the disk answers"
    with pytest.raises(FetchError):
        asyncio.run(Fetcher(1.0).fetch("https://slow.example/", io.BytesIO(), 10))
