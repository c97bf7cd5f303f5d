"""The greedy tenant of `chaos.neighbour`, in a process of its own: `python -m chaos.noise PORT SEED`.

It reads its key from standard input and says `ready` when it begins. It ends when its standard input does,
and then prints how many answers of each status it got.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image

from chaos.client import BOUNDARY, FORM, Client, NoAnswer, SubmitForm

FLOODS: Final = 32
BOMBS: Final = 16
TRICKLES: Final = 100
STREAMS: Final = 150


class Noise:
    """Does everything that a key allows, all at once."""

    def __init__(self, port: int, key: str, seed: int) -> None:
        self._port, self._key = port, key
        self._noise = np.random.default_rng(seed)
        self.statuses: Counter[int] = Counter()

    async def run(self) -> None:
        """Make noise until standard input ends."""
        makers = await self._noise_makers()
        os.nice(5)  # We stand for other machines: the server comes first.
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        tasks = [asyncio.create_task(make()) for make in makers]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _noise_makers(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        photo = io.BytesIO()
        pixels = self._noise.integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photo, "JPEG", quality=50)
        small, large = SubmitForm().body(prompt="x"), SubmitForm(photo.getvalue()).body(prompt="x")
        zeros = b'{"prompt": [' + b"0," * 2_000_000 + b"0]}"
        client = Client(self._port)
        job = (await client.post("/v1/generate", self._key, small)).json()["id"]
        client.close()
        return [
            *[partial(self._flood, "/v1/generate", small)] * FLOODS,
            *[partial(self._flood, "/v1/validate", large)] * BOMBS,
            *[partial(self._flood, "/v1/validate", zeros, "application/json")] * BOMBS,
            *[self._trickle] * TRICKLES,
            *[partial(self._listen, job)] * STREAMS,
        ]

    async def _flood(self, path: str, body: bytes, kind: str = FORM) -> None:
        client = Client(self._port)
        while True:
            try:
                answer = await client.post(path, self._key, body, kind)
                self.statuses[answer.status] += 1
            except NoAnswer:
                self.statuses[0] += 1
                await asyncio.sleep(0.1)

    async def _trickle(self) -> None:
        head = (
            f"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 1000000\r\n\r\n"
        )
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(head.encode())
                for _ in range(600):
                    writer.write(b"-")
                    await writer.drain()
                    await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)

    async def _listen(self, job: str) -> None:
        head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Authorization: Bearer {self._key}\r\n\r\n"
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(head.encode())
                while await reader.read(65_536):
                    pass
                writer.close()
            await asyncio.sleep(0.1)


def main() -> None:
    port, seed = (int(argument) for argument in sys.argv[1:])
    noise = Noise(port, sys.stdin.readline().strip(), seed)
    asyncio.run(noise.run())
    sys.stdout.write(json.dumps({str(status): count for status, count in noise.statuses.items()}))


if __name__ == "__main__":
    main()
