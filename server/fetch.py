"""Opens URLs that strangers name, without being led into our own network.

A host name is resolved once. If any of its addresses is not public, the URL is refused. Otherwise the
connection goes to exactly one of the checked addresses, so that a second answer of the name server changes
nothing. TLS checks the certificate against the name. Redirects and proxies are never followed. The head of an
answer, its body and the time for all of it are bounded. Networks that the operator names may be opened too,
and only they without TLS.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final
from urllib.parse import SplitResult, urlsplit

import anyio
import httpcore

from contract.network import PrivateNetworks

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Policy = Callable[[str], bool]
LONGEST_URL: Final = 2048
RESOLVING_AT_ONCE: Final = 16
LOOK_UP_S: Final = 2.0
"""How long a submit waits to learn whether its webhook has an address that may be called."""
PORT_OF_SCHEME: Final = {"https": 443, "http": 80}
NO_NETWORKS: Final = PrivateNetworks()
USER_AGENT: Final = "cointeract-server"
_BROKEN: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
"""Not OSError, which would say that our own disk is full."""
NOT_OPENED: Final = "The host of this URL has an address that is not public, or http: is not allowed there."
_GLOBAL_IPV6: Final = ipaddress.ip_network("2000::/3")
"""All that is assigned for global unicast. Site-local (fec0::/10), NAT64 and IPv4 in IPv6 lie outside."""
_DOCUMENTATION_IPV6: Final = ipaddress.ip_network("3fff::/20")  # Python 3.11 takes it for global


class FetchError(Exception):
    """A URL could not be opened. `limit` is the bound that was passed, if it was one."""

    def __init__(self, detail: str, limit: float | None = None) -> None:
        super().__init__(detail)
        self.detail, self.limit = detail, limit


class FetchRefused(FetchError):
    """We do not open such a URL, or its host has an address that is not public."""


class FetchFailed(FetchError):
    """The other side did not give the file in time, or at all."""


class FetchTooLarge(FetchError):
    """The file is longer than `limit` bytes."""


class FetchedNothing(FetchError):
    """The file is empty."""


@dataclass(frozen=True)
class Fetched:
    """What was fetched, apart from its bytes. `media_type` is what the other side says, or ""."""

    size: int
    sha256: str
    media_type: str


def is_public(address: str) -> bool:
    """Whether an IP address is globally reachable. Addresses that wrap another one are judged by both."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None or ip not in _GLOBAL_IPV6 or ip in _DOCUMENTATION_IPV6:
            return False
        wrapped = [ip.sixtofour, *(ip.teredo or ())]
        if any(inner is not None and not is_public(str(inner)) for inner in wrapped):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class SystemResolver:
    """The system's resolver, in threads of its own: a name server that does not answer holds up no disk."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVING_AT_ONCE, thread_name_prefix="dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """All addresses of a host name. Raises OSError."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        answers = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(answer[4][0]) for answer in answers]


def check_url(url: str, private: PrivateNetworks = NO_NETWORKS) -> SplitResult:
    """Parse a URL that we are to open.

    Raises FetchRefused unless it is a plain https: URL, or http: where there are private networks; whether it
    leads there shows when its host is resolved.
    """
    refused = FetchRefused("Only plain https: URLs with a host name are fetched.")
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise refused
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise refused from error
    schemes = ("https", "http") if private.any else ("https",)
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None or port == 0:
        raise refused
    return parts


@dataclass
class _CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Connects to a checked address of the host, and keeps the connections to close them for certain."""

    resolver: Resolver
    may_open: Callable[[str], bool]
    """Whether a connection to an address may be made."""
    opened: list[httpcore.AsyncNetworkStream] = field(default_factory=list)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self.resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise FetchFailed("The host of this URL is not known.") from error
        if not addresses or not all(self.may_open(address) for address in addresses):
            raise FetchRefused(NOT_OPENED)
        stream = await httpcore.AnyIOBackend().connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )
        self.opened.append(stream)
        return stream

    async def close(self) -> None:
        """httpcore forgets a connection whose TLS handshake is cut off by the deadline."""
        with anyio.CancelScope(shield=True):
            for stream in self.opened:
                await stream.aclose()


@dataclass(frozen=True)
class Fetcher:
    """Opens URLs. Tests replace `resolver`, `policy` and `tls`; the defaults are the real ones."""

    timeout_s: float
    resolver: Resolver = field(default_factory=SystemResolver)
    policy: Policy = is_public
    """Whether an address is public."""
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    private: PrivateNetworks = NO_NETWORKS
    """The operator's own networks, to which URLs may lead, too."""

    def _may_open(self, parts: SplitResult, address: str) -> bool:
        """Whether the URL may lead to this address: a public one by https:, or one the operator allows."""
        port = parts.port or PORT_OF_SCHEME[parts.scheme]
        if self.private.allows(parts.hostname or "", port, address):
            return True
        return parts.scheme == "https" and self.policy(address)

    async def check(self, url: str) -> None:
        """Refuse a URL that could never be opened. Raises FetchRefused.

        A name that is not known now may be known later.
        """
        parts = check_url(url, self.private)
        host, port = parts.hostname or "", parts.port or PORT_OF_SCHEME[parts.scheme]
        try:
            async with asyncio.timeout(LOOK_UP_S):
                addresses = await self.resolver(host, port)
        except (OSError, UnicodeError):  # TimeoutError is one
            return
        if not all(self._may_open(parts, address) for address in addresses):
            raise FetchRefused(NOT_OPENED)

    async def fetch(self, url: str, file: BinaryIO, limit: int) -> Fetched:
        """Get `url` into `file`, at most `limit` bytes. Raises FetchError."""
        async with self._answer("GET", url, {"Accept": "*/*"}) as answer:
            if answer.status != 200:
                detail = f"The URL answered with status {answer.status} (redirects are not followed)."
                raise FetchFailed(detail)
            too_large = FetchTooLarge(f"More than {limit} bytes.", limit)
            headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
            announced = headers.get(b"content-length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise too_large
            digest, size = hashlib.sha256(), 0
            async for chunk in answer.aiter_stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                await asyncio.to_thread(file.write, chunk)  # to a disk, which may be slow
                digest.update(chunk)
        if size == 0:
            raise FetchedNothing("The file is empty.")
        file.flush()
        media_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        return Fetched(size, digest.hexdigest(), media_type)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post to `url` and return the status of the answer, whose body is not read. Raises FetchError."""
        async with self._answer("POST", url, headers, body) as answer:
            return answer.status

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[httpcore.Response]:
        """The head of an answer, its body still to be read, all within the deadline. Raises FetchError."""
        parts = check_url(url, self.private)
        # From the parts that were checked: a second parser might find another host in the same text.
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        opened = httpcore.URL(
            scheme=parts.scheme,
            host=str(parts.hostname),
            port=parts.port or PORT_OF_SCHEME[parts.scheme],
            target=target.encode(),
        )
        all_headers = {"Host": parts.netloc, "User-Agent": USER_AGENT, "Connection": "close", **headers}
        backend = _CheckedAddresses(self.resolver, partial(self._may_open, parts))
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                httpcore.AsyncConnectionPool(self.tls, network_backend=backend) as pool,
                pool.stream(method, opened, headers=list(all_headers.items()), content=body) as answer,
            ):
                yield answer
        except TimeoutError as error:
            raise FetchFailed("Fetching this URL took too long.", self.timeout_s) from error
        except (*_BROKEN, UnicodeError) as error:
            raise FetchFailed("This URL could not be fetched.") from error
        finally:
            await backend.close()
