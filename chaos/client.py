"""A lean HTTP/1.1 client for `cointeract chaos`, which shares the machine with the service that it measures.

It makes real requests over real sockets and keeps its connections. Bodies are made before measuring starts.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from PIL import Image

from contract.video import SAMPLE_RATE

BOUNDARY = "chaos-a6d0f6ab"
TIMEOUT_S = 30.0
CONNECTION_KEPT_S = 10.0
"""How long an unused connection is kept. The server closes it after 30 s; no request may run into that."""


FORM = f"multipart/form-data; boundary={BOUNDARY}"


class NoAnswer(Exception):
    """The server was not there, broke off, or took too long."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Values by lower-case name."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A client of servers on this machine, asked in turn. Its methods raise NoAnswer."""

    def __init__(self, *ports: int) -> None:
        self._ports = cycle(ports)
        self._idle: dict[int, list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]]] = {
            port: [] for port in ports
        }
        """Idle connections by port, each with the time since when it has been idle."""

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        port = next(self._ports)
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        writer = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await self._connection(port)
                writer.writelines((head, body))
                answer = await _read_answer(reader)
        except (OSError, EOFError, TimeoutError) as error:
            if writer is not None:
                writer.close()
            raise NoAnswer(f"{method} {path}: {error!r}") from error
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        if answer.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle[port].append((time.monotonic(), reader, writer))
        return answer

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def submit(self, body: bytes, key: str | None = None) -> Answer:
        """POST a form made by `SubmitForm`."""
        headers = {"Content-Type": FORM}
        return await self.request(
            "POST", "/v1/generate", headers | ({} if key is None else {"Idempotency-Key": key}), body
        )

    async def post(self, path: str, key: str, body: bytes, kind: str = FORM) -> Answer:
        """POST as the owner of an API key."""
        return await self.request(
            "POST", path, {"Content-Type": kind, "Authorization": f"Bearer {key}"}, body
        )

    def close(self) -> None:
        for idle in self._idle.values():
            for _, _, writer in idle:
                writer.close()

    async def _connection(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle[port]:
            since, reader, writer = self._idle[port].pop()
            if time.monotonic() - since < CONNECTION_KEPT_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", port)


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(status.split(" ")[1]), headers, body)


class SubmitForm:
    """Bodies of submits: a photo, five seconds of near silence (two clips), and the texts given."""

    def __init__(self, photo: bytes | None = None) -> None:
        small, speech = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(small, "PNG")
        with wave.open(speech, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(bytes(range(256)) * (5 * SAMPLE_RATE * 2 // 256))
        self._files = (
            _part('name="person_image"; filename="person"', photo or small.getvalue())
            + _part('name="audio"; filename="speech.wav"', speech.getvalue(), "audio/wav")
            + f"--{BOUNDARY}--\r\n".encode()
        )

    def body(self, **texts: str) -> bytes:
        return b"".join(_part(f'name="{name}"', text.encode()) for name, text in texts.items()) + self._files


def _part(disposition: str, content: bytes, media_type: str | None = None) -> bytes:
    kind = "" if media_type is None else f"Content-Type: {media_type}\r\n"
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\n"
    return head.encode() + content + b"\r\n"
