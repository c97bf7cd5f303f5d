"""A real S3 server: moto's, over HTTP, behind a proxy that can do it every harm a network can."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, get_args

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Fault = Literal["500", "503", "hang", "reset", "torn upload", "lost answer", "late 500", "cut answer"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
HANG_S: Final = 2.0
BUCKET: Final = "videos"
_ERROR = "<Error><Code>{code}</Code><Message>injected</Message></Error>"
_HOP_HEADERS = frozenset({"connection", "expect", "transfer-encoding", "keep-alive"})


@dataclass
class S3Server:
    """The address of the proxy, and what it does to requests."""

    port: int = 0
    fault_of: Callable[[str, str], Fault | None] = lambda method, path: None
    """The harm that is done to a request, by its method and path."""
    dropped_headers: frozenset[str] = frozenset()
    requests: list[str] = field(default_factory=list)
    """Method and path of all that came in."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def each_first_try(self, fault: Fault) -> None:
        """Do this harm to the first try of every request."""
        seen: set[tuple[str, str]] = set()
        lock = threading.Lock()

        def fault_of(method: str, path: str) -> Fault | None:
            with lock:
                is_new = (method, path) not in seen
                seen.add((method, path))
            return fault if is_new else None

        self.fault_of = fault_of


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *arguments: object) -> None:
        pass


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: S3Server
    upstream: int

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        self.s3.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.s3.fault_of(self.command, self.path)
        match fault:
            case "500":
                self._answer(500, _ERROR.format(code="InternalError").encode())
            case "503":
                self._answer(503, _ERROR.format(code="SlowDown").encode())
            case "hang":
                time.sleep(HANG_S)
                self._reset()
            case "reset":
                self._reset()
            case "torn upload" if body:
                self._forward(body[: len(body) // 2], len(body))
                self._reset()
            case _:
                status, headers, content = self._forward(body, len(body))
                if fault == "lost answer":
                    self._reset()
                elif fault == "late 500":
                    self._answer(500, _ERROR.format(code="InternalError").encode())
                elif fault == "cut answer" and len(content) > 1 and self.command == "GET":
                    self._answer(status, content[: len(content) // 2], headers, len(content))
                    self._reset()
                else:
                    length = headers.get("content-length") if self.command == "HEAD" else None
                    self._answer(status, content, headers, int(length or len(content)))

    def _forward(self, body: bytes, length: int) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS | {"content-length"} | self.s3.dropped_headers:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(length))
        connection.endheaders(body)
        if len(body) < length:
            connection.close()
            return 0, {}, b""
        answer = connection.getresponse()
        content = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, headers, content

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            if name not in _HOP_HEADERS | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # connections that a test has reset


def _proxy(server: S3Server, upstream: int) -> ThreadingHTTPServer:
    handler = type("Proxy", (_Proxy,), {"s3": server, "upstream": upstream})
    return _Server(("127.0.0.1", 0), handler)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs until the block ends. moto handles one request at a time: its check for a conditional write and
    the write are two steps, which are one in S3.
    """
    moto = make_server(
        "127.0.0.1",
        0,
        DomainDispatcherApplication(create_backend_app),
        threaded=False,
        request_handler=_QuietHandler,
    )
    server = S3Server()
    proxy = _proxy(server, moto.server_port)
    server.port = proxy.server_port
    threads = [threading.Thread(target=each.serve_forever, daemon=True) for each in (moto, proxy)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        for each, thread in zip((proxy, moto), reversed(threads), strict=True):
            each.shutdown()
            thread.join()
            each.server_close()
