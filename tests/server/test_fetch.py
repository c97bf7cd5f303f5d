"""The guarded fetcher, against a real TLS server and with the real policy."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from server.fetch import (
    Fetched,
    FetchedNothing,
    Fetcher,
    FetchError,
    FetchFailed,
    FetchRefused,
    FetchTooLarge,
    SystemResolver,
    is_public,
)

HOST = "files.example"
BODY = bytes(range(256)) * 300


@dataclass
class Tls:
    """A TLS server that answers each request with `answer`, and what it was asked."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)


@asynccontextmanager
async def tls_server(
    certificate: Any, answer: Callable[[asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[Tls]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    state = Tls(0)
    context.sni_callback = lambda _socket, name, _context: state.names.append(name)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            state.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    state.port = server.sockets[0].getsockname()[1]
    async with server:
        yield state


def says(*parts: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)

    return answer


def ok(body: bytes, extra: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n%s\r\n" % (len(body), extra)
        + body
    )


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def fetcher(
    authority: trustme.CA, addresses: Sequence[str] = ("127.0.0.1",), timeout_s: float = 5.0
) -> Fetcher:
    """A fetcher that takes `addresses` for every host, and 127.0.0.1 for public."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return Fetcher(timeout_s, resolver, lambda address: address == "127.0.0.1", trusting)


@dataclass
class Got:
    content: bytes
    media_type: str
    server: Tls


async def get(
    authority: trustme.CA, answer: Any, limit: int = 10**6, host: str = HOST, **options: Any
) -> Got:
    async with tls_server(authority.issue_cert(HOST), answer) as server:
        url = f"https://{host}:{server.port}/a.png?x=1"
        file = io.BytesIO()
        fetched = await fetcher(authority, **options).fetch(url, file, limit)
        assert fetched.sha256 == hashlib.sha256(file.getvalue()).hexdigest()
        assert fetched.size == len(file.getvalue())
        return Got(file.getvalue(), fetched.media_type, server)


def refusal(*arguments: Any, **options: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        asyncio.run(get(*arguments, **options))
    return caught.value


def test_a_file_is_fetched_from_the_checked_address_under_its_own_name(authority: trustme.CA) -> None:
    got = asyncio.run(get(authority, says(ok(BODY))))
    assert (got.content, got.media_type) == (BODY, "image/png")
    assert got.server.names == [HOST]
    request = got.server.requests[0]
    assert request.startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")
    assert f"Host: {HOST}:{got.server.port}".encode() in request


def test_a_chunked_answer_is_fetched(authority: trustme.CA) -> None:
    answer = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert asyncio.run(get(authority, answer)).content == b"abc"


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"404 Not Found", b"206 Partial Content"])
def test_redirects_and_errors_are_not_followed(authority: trustme.CA, status: bytes) -> None:
    answer = says(b"HTTP/1.1 " + status + b"\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n")
    assert type(refusal(authority, answer)) is FetchFailed


def test_too_many_bytes_are_refused_whether_announced_or_not(authority: trustme.CA) -> None:
    assert type(refusal(authority, says(ok(BODY)), limit=1000)) is FetchTooLarge
    endless = says(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 10_000] * 100)
    assert type(refusal(authority, endless, limit=1000)) is FetchTooLarge


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"",
    ],
)
def test_a_broken_answer_is_a_failure(authority: trustme.CA, answer: bytes) -> None:
    assert type(refusal(authority, says(answer))) is FetchFailed


def test_an_empty_file_is_refused(authority: trustme.CA) -> None:
    assert type(refusal(authority, says(ok(b"")))) is FetchedNothing


def test_a_server_that_never_ends_runs_into_the_deadline(authority: trustme.CA) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(200):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    assert refusal(authority, trickle, timeout_s=0.5).limit == 0.5


def test_an_endless_head_is_a_failure(authority: trustme.CA) -> None:
    fields = says(b"HTTP/1.1 200 OK\r\n", *[b"X-Y: " + b"z" * 1000 + b"\r\n"] * 500)
    assert type(refusal(authority, fields)) is FetchFailed

    async def hints(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()

    assert refusal(authority, hints, timeout_s=0.5).limit == 0.5


def test_a_server_that_never_ends_the_handshake_is_hung_up_on(authority: trustme.CA) -> None:
    async def story() -> None:
        hung_up = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1000):
                pass
            hung_up.set()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(FetchFailed):
                await fetcher(authority, timeout_s=0.5).fetch(f"https://{HOST}:{port}/", io.BytesIO(), 1000)
            async with asyncio.timeout(5):
                await hung_up.wait()

    asyncio.run(story())


def test_a_proxy_of_the_environment_is_not_used(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert asyncio.run(get(authority, says(ok(BODY)))).content == BODY


def test_a_full_disk_is_not_the_other_sides_fault(authority: trustme.CA) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def fetch() -> None:
        async with tls_server(authority.issue_cert(HOST), says(ok(BODY))) as server:
            await fetcher(authority).fetch(f"https://{HOST}:{server.port}/", Full(), 10**6)

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(fetch())


def test_a_certificate_of_another_name_is_refused(authority: trustme.CA) -> None:
    assert type(refusal(authority, says(ok(BODY)), host="other.example")) is FetchFailed


def test_one_private_address_among_public_ones_refuses_the_host(authority: trustme.CA) -> None:
    problem = refusal(authority, says(ok(BODY)), addresses=("127.0.0.1", "10.0.0.1"))
    assert type(problem) is FetchRefused


def test_the_name_is_resolved_once(authority: trustme.CA) -> None:
    answers = iter([("127.0.0.1",), ("10.0.0.1",)])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answers)

    async def fetch() -> Fetched:
        async with tls_server(authority.issue_cert(HOST), says(ok(BODY))) as server:
            plain = fetcher(authority)
            changing = Fetcher(5.0, rebinding, plain.policy, plain.tls)
            url = f"https://{HOST}:{server.port}/"
            return await changing.fetch(url, io.BytesIO(), 10**6)

    assert asyncio.run(fetch()).size == len(BODY)
    assert next(answers) == ("10.0.0.1",), "a second look-up would have got this"


PRIVATE = [
    "127.0.0.1", "127.1.2.3", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::",
    "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "2001:0:7f00:1::",
    "fec0::1", "feff::1", "::7f00:1", "64:ff9b:1::a00:1", "100::1", "3fff::1", "5f00::1", "4000::1",
    "not an address", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)
    assert ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x", "https://localhost/x", "https://[::1]/x", "https://0/x", "https://2130706433/x",
        "https://0x7f.1/x", "https://0177.0.0.1/x", "https://[::ffff:127.0.0.1]/x", "https://127.0.0.1:6379/x",
        "https://169.254.169.254/latest/meta-data", "http://example.com/", "https://user:pw@example.com/",
        "https://user@127.0.0.1/", "https://", "https:///x", "https://example.com:0/", "https://example.com:99999/",
        "https://exa mple.com/", "https://example.com\\@127.0.0.1/", "ftp://example.com/", "https://exämple.com/",
        "https://example.com/\r\nX: y", "https://[::1", "https://" + "a" * 3000 + ".com/",
    ],
)  # fmt: skip
def test_with_the_real_policy_nothing_of_ours_is_reached(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", never)
    with pytest.raises((FetchRefused, FetchFailed)):
        asyncio.run(Fetcher(5.0).fetch(url, io.BytesIO(), 1000))


def test_the_resolver_is_the_systems() -> None:
    assert set(asyncio.run(SystemResolver()("localhost", 443))) <= {"127.0.0.1", "::1"}
    assert socket.gethostbyname("localhost") == "127.0.0.1"
