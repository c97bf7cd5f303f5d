"""Receivers of webhooks: one that takes every message, and a black hole that takes connections in silence.

The server sends webhooks to public addresses only. This process therefore moves into a network of its own, in
which a public address leads to it, and which has no way to the real one. Needs root, ip and openssl.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ADDRESS = "11.11.11.11"
_CLONE_NEWNET = 0x40000000
_TOOLS = ("ip", "openssl")


class NoNetwork(Exception):
    """This machine does not allow such a network. The message says what is missing."""


@contextmanager
def network_of_our_own() -> Iterator[None]:
    """Move this thread, and all processes and threads that it starts, into a network of their own.

    The network has nothing but a loopback device, on which `ADDRESS` is. Raises NoNetwork.
    """
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            raise NoNetwork(f"webhooks to a black hole need the program {tool}")
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if libc.unshare(_CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise NoNetwork(f"webhooks to a black hole need root, to make a network of their own: {reason}")
        try:
            for words in (("link", "set", "lo", "up"), ("address", "add", f"{ADDRESS}/32", "dev", "lo")):
                subprocess.run(["ip", *words], check=True)
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) for `ADDRESS`, valid for two days. Only those who are told to trust it do."""
    certificate, key = folder / "receiver.pem", folder / "receiver.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=chaos"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", f"subjectAltName=IP:{ADDRESS}", "-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@dataclass
class Receivers:
    """The received messages. The URLs are known once both receivers listen."""

    good_url: str = ""
    hole_url: str = ""
    ends: dict[str, float] = field(default_factory=dict)
    """Unix time of the first message about each job's end."""
    messages: Counter[str] = field(default_factory=Counter)
    """The number of times that each message id was received."""

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
            }
            message = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.messages[headers["webhook-id"]] += 1
            if message["type"] in ("job.succeeded", "job.failed", "job.canceled"):
                self.ends.setdefault(message["data"]["id"], time.time())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (OSError, EOFError, asyncio.IncompleteReadError):
            return  # a sender that was killed
        finally:
            writer.close()

    async def _swallow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold the connection until the other side gives up."""
        try:
            while await reader.read(65536):
                continue
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiving(certificate: Path, key: Path) -> AsyncIterator[Receivers]:
    """Run both receivers, which listen."""
    receivers = Receivers()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    good = await asyncio.start_server(receivers._take, ADDRESS, 0, ssl=tls)
    hole = await asyncio.start_server(receivers._swallow, ADDRESS, 0)
    receivers.good_url = f"https://{ADDRESS}:{good.sockets[0].getsockname()[1]}/taken"
    receivers.hole_url = f"https://{ADDRESS}:{hole.sockets[0].getsockname()[1]}/swallowed"
    try:
        yield receivers
    finally:
        good.close()
        hole.close()
