"""A small server with the Hugging Face Hub's API for model files: listing, metadata, ranges, large files
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 512
"""Files of at least this many bytes are "large": stored elsewhere, known by SHA-256."""


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up: its words would be taken for the command's."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@dataclass
class Hub:
    """What the server holds and what it was asked. Tests change it while it runs."""

    repos: dict[str, dict[str, bytes]]
    commit: str = "a" * 40
    token: str | None = None
    """Required for every request if set."""
    cut: dict[str, int] = field(default_factory=dict)
    """Paths whose next download breaks off after so many bytes; later ones are refused until removed from
    here.
    """
    corrupt: set[str] = field(default_factory=set)
    """Files delivered with a wrong byte."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header)"""
    url: str = ""

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [
            path.rpartition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/api/" not in path
        ]

    @contextmanager
    def running(self) -> Iterator[Hub]:
        server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and body in one packet: no waiting for a delayed acknowledgement

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._error(401, "GatedRepo")
            elif parts[:2] == ["api", "models"] and len(parts) > 5:
                self._listing("/".join(parts[2:4]), parts[5])
            elif parts[0] == "elsewhere":
                self._content("/".join(parts[1:3]), "/".join(parts[3:]))
            elif len(parts) > 4:
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:  # A stranger: another test's client may still ask whoever has its server's port now.
                self._error(404, "EntryNotFound")

        def _listing(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                return self._error(404, "RepoNotFound")
            if revision not in ("main", hub.commit):
                return self._error(404, "RevisionNotFound")
            siblings = []
            for name, data in hub.repos[repo].items():
                entry = {"rfilename": name, "size": len(data), "blobId": _git_blob(data)}
                if len(data) >= LARGE:
                    entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            body = json.dumps({"id": repo, "sha": hub.commit, "siblings": siblings}).encode()
            self._send(200, body, {"Content-Type": "application/json"})

        def _resolve(self, repo: str, commit: str, name: str) -> None:
            data = hub.repos.get(repo, {}).get(name)
            if data is None or commit != hub.commit:
                return self._error(404, "EntryNotFound")
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{_git_blob(data)}"'}
            if len(data) >= LARGE:
                headers |= {"X-Linked-ETag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
                headers["Location"] = f"{hub.url}/elsewhere/{repo}/{name}"
                return self._send(302, b"", headers)
            if self.command == "HEAD":
                return self._send(200, data, headers)
            self._content(repo, name)

        def _content(self, repo: str, name: str) -> None:
            data = hub.repos[repo][name]
            if name in hub.corrupt:
                data = bytes([data[0] ^ 1]) + data[1:]
            if name in hub.cut and self.command == "GET":
                stop = hub.cut[name]
                if stop < 0:
                    return self._error(503, "Unavailable")
                hub.cut[name] = -1
                self._start(200, len(data), {})
                self.wfile.write(data[:stop])
                self.close_connection = True
                return
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
            self._send(206 if first else 200, data[first:], headers)

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self._start(status, len(body), headers)
            if self.command != "HEAD":
                self.wfile.write(body)

        def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

    return Handler


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
