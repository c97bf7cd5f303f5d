"""The guarded fetcher: gets an input from an https: URL without becoming a way into our own network.

The name is resolved once; if any of its addresses is not a public one the fetch is refused; the connection
goes to one of
the addresses that were checked (so a second answer of the name server changes nothing), with the certificate
checked
against the name. No redirects, no proxies, a byte cap, one deadline. Anything unexpected is a refusal.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import SplitResult, urlsplit

import h11

from server.errors import ApiError
from server.submit.multipart import ReceivedFile

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Policy = Callable[[str], bool]
LONGEST_URL: Final = 2048
CHUNK_BYTES: Final = 2**16
USER_AGENT: Final = "cointeract-server"


def is_public(address: str) -> bool:
    """Whether an IP address is globally reachable. Addresses that wrap another one are judged by both."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(wrapped is not None and not is_public(str(wrapped)) for wrapped in inner):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host name, by the system's resolver."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


def check_url(url: str, field: str) -> SplitResult:
    """Parse a URL that we are to open. Raises ApiError unless it is a plain https: URL."""
    refused = ApiError("fetch_refused", "Only plain https: URLs with a host name are fetched.", field=field)
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise refused
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise refused from error
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or port == 0:
        raise refused
    return parts


@dataclass(frozen=True)
class Fetcher:
    """Gets files over https. `resolver`, `policy` and `tls` are what a test replaces; the defaults are the
    real ones.
    """

    timeout_s: float
    resolver: Resolver = resolve
    policy: Policy = is_public
    tls: ssl.SSLContext | None = None

    async def addresses(self, host: str, port: int, field: str) -> Sequence[str]:
        """The addresses of a host, all of them checked. Raises ApiError."""
        try:
            addresses = await self.resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise ApiError("fetch_failed", "The host of this URL is not known.", field=field) from error
        if not addresses or not all(self.policy(address) for address in addresses):
            raise ApiError(
                "fetch_refused", "The host of this URL has an address that is not public.", field=field
            )
        return addresses

    async def fetch(self, url: str, file: BinaryIO, limit: int, field: str) -> ReceivedFile:
        """Get `url` into `file`, at most `limit` bytes. Raises ApiError naming the field."""
        async with self._connected(url, field) as (parts, reader, writer):
            return await _get(parts, reader, writer, file, limit, field)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, field: str) -> int:
        """Post to `url` and return the status of the answer, which is not read. Raises ApiError."""
        async with self._connected(url, field) as (parts, reader, writer):
            connection = h11.Connection(h11.CLIENT)
            all_headers = [*_headers(parts), *headers.items(), ("Content-Length", str(len(body)))]
            request = h11.Request(method="POST", target=_target(parts), headers=all_headers)
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            await writer.drain()
            while (answer := connection.next_event()) is h11.NEED_DATA or isinstance(
                answer, h11.InformationalResponse
            ):
                connection.receive_data(await reader.read(CHUNK_BYTES))
            if not isinstance(answer, h11.Response):
                raise ApiError("fetch_failed", "The connection closed without an answer.", field=field)
            return answer.status_code

    @asynccontextmanager
    async def _connected(
        self, url: str, field: str
    ) -> AsyncIterator[tuple[SplitResult, asyncio.StreamReader, asyncio.StreamWriter]]:
        """A TLS connection to a checked address, within the deadline. Whatever goes wrong is an ApiError."""
        parts = check_url(url, field)
        host, port = str(parts.hostname), parts.port or 443
        try:
            async with asyncio.timeout(self.timeout_s):
                addresses = await self.addresses(host, port, field)
                reader, writer = await asyncio.open_connection(
                    addresses[0], port, ssl=self.tls or ssl.create_default_context(), server_hostname=host
                )
                try:
                    yield parts, reader, writer
                finally:
                    writer.close()
        except TimeoutError as error:
            raise ApiError(
                "fetch_failed", "Fetching this URL took too long.", field=field, limit=self.timeout_s
            ) from error
        except (OSError, h11.RemoteProtocolError, UnicodeError) as error:
            raise ApiError("fetch_failed", "This URL could not be fetched.", field=field) from error


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _headers(parts: SplitResult) -> list[tuple[str, str]]:
    return [("Host", parts.netloc), ("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Connection", "close")]


async def _get(
    parts: SplitResult,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    file: BinaryIO,
    limit: int,
    field: str,
) -> ReceivedFile:
    connection = h11.Connection(h11.CLIENT)
    request = connection.send(h11.Request(method="GET", target=_target(parts), headers=_headers(parts)))
    writer.write((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    too_large = ApiError("file_too_large", f"More than {limit} bytes.", field=field, limit=limit)
    digest, size, declared_type = hashlib.sha256(), 0, ""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                detail = f"The URL answered with status {event.status_code} (redirects are not followed)."
                raise ApiError("fetch_failed", detail, field=field)
            answered = dict(event.headers)
            declared_type = (
                answered.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
            )
            if (
                answered.get(b"content-length", b"0").isdigit()
                and int(answered.get(b"content-length", 0)) > limit
            ):
                raise too_large
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > limit:
                raise too_large
            file.write(event.data)
            digest.update(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise ApiError("fetch_failed", "The connection closed before the file was complete.", field=field)
    if size == 0:
        raise ApiError("empty_file", "The file is empty.", field=field)
    file.flush()
    return ReceivedFile(file, size, digest.hexdigest(), declared_type)
