"""A TCP proxy that cuts connections where a test wants it: real sockets, real resets."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType


class BreakingProxy:
    """Forwards to `port` on this machine. `cuts` says after how many bytes of the answer each next
    connection is reset; without an entry a connection is left alone.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts: list[int] = []
        self.connections = 0

    def __enter__(self) -> BreakingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            cut = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self._serve, args=(client, cut), daemon=True).start()

    def _serve(self, client: socket.socket, cut: int | None) -> None:
        upstream = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=_pump, args=(client, upstream, None), daemon=True).start()
        _pump(upstream, client, cut)
        if cut is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (client, upstream):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was faster
        client.close()
        upstream.close()


def _pump(source: socket.socket, target: socket.socket, most: int | None) -> None:
    """Forward until the source ends, or until `most` bytes have passed."""
    try:
        while most is None or most > 0:
            data = source.recv(65536 if most is None else min(65536, most))
            if not data:
                return
            target.sendall(data)
            most = None if most is None else most - len(data)
    except OSError:
        return
