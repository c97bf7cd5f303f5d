"""Adds limits that uvicorn's HTTP protocol lacks: on the size and time of heads, on bodies and answers that
nobody reads, and on the connections of one client.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from contract.network import network_of
from server.shares import NoPlace, Places

MAX_HEAD_BYTES: Final = 65_536
HEAD_SECONDS: Final = 20.0
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 16 * 2**20
STALL_SECONDS: Final = 60.0
"""How long an answer waits for a client that reads nothing of it."""
_NO_PLACE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request has endless headers, or headers that arrive too slowly.

    The body of a request that is already answered is read for a moment longer. A client that is still sending
    when the connection closes would get a socket error instead of the answer.
    """

    places: Places
    """Those of all connections of a server. A network holds as many as it leaves free."""
    head_seconds: float = HEAD_SECONDS
    linger_seconds: float = LINGER_SECONDS
    stall_seconds: float = STALL_SECONDS
    _lingering: TimerHandle | None = None
    _unread_bytes: int = 0
    _in_head: bool = True
    _head_bytes: int = 0
    _header_bytes: int = 0
    _heads: int = 0
    """Heads completed on this connection."""
    _body_is_complete: bool = True
    _deadline: TimerHandle | None = None
    _stalled: TimerHandle | None = None
    _network: str | None = None
    """Where the client is, if it holds a place."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        network = network_of(self.client[0]) if self.client else ""
        try:
            self.places.take(network)
        except NoPlace:  # before anything is read, because it takes its time to send that
            transport.write(_NO_PLACE)
            transport.close()
            return
        self._network = network
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._network is not None:
            self.places.give_back(self._network)
        self._can_write()
        self._head_is_complete()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._can_write()
        super().resume_writing()

    def _can_write(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        super().data_received(data)
        if self._lingering is not None:
            self._unread_bytes += len(data)
            if self._unread_bytes > LINGER_BYTES:
                self.transport.close()
        if not self._in_head or heads != self._heads or self.transport.is_closing():
            return  # data counts only if all of it belongs to a head
        self._head_bytes += len(data)
        if self._deadline is None:
            self._expect_head()
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(f"The head of the request has more than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes, self._header_bytes = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_headers_complete(self) -> None:
        if self._header_bytes > MAX_HEAD_BYTES:  # a head that came in one piece
            self._refuse(f"The head of the request has more than {MAX_HEAD_BYTES} bytes.")
            return
        self._heads += 1
        self._body_is_complete = False
        self._head_is_complete()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_is_complete = True
        super().on_message_complete()
        if self._lingering is not None:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Wait a moment only for the rest of a body that nobody will read: it may never come."""
        super().on_response_complete()
        if not self._body_is_complete and not self.transport.is_closing():
            self._lingering = self.loop.call_later(self.linger_seconds, self.transport.close)

    def _expect_head(self) -> None:
        reason = "The request did not come in time."
        self._deadline = self.loop.call_later(self.head_seconds, self._refuse, reason)

    def _head_is_complete(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, reason: str) -> None:
        if not self.transport.is_closing():
            self.send_400_response(reason)


def protocol_of_server(most_connections: int) -> type[BoundedHttpProtocol]:
    """The protocol of one server, whose connections share so many places."""

    class SharedHttpProtocol(BoundedHttpProtocol):
        places = Places(most_connections)

    return SharedHttpProtocol
