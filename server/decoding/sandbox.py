"""The server's side of the sandbox: starts `server.decoding.child`, hands it files, takes its answers.

There are two such processes: the usual one, and one with all codecs, started for the first request that holds
more than PNG, JPEG, WebP and WAV. Such a request goes there with all its files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from contract.processes import own_process
from contract.settings import Settings
from server.decoding.child import READY
from server.decoding.decoded import DecodedFile, limits_of
from server.decoding.decoders import Libraries, libraries_for
from server.decoding.formats import Kind
from server.errors import ApiError
from server.shares import Turns

log = logging.getLogger(__name__)

HEAVY_BYTES: Final = 4 * 2**20
"""Files of more bytes take long to decode."""

DECODER_START_TIMEOUT_S: Final = 60.0
MESSAGES: Final = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
"""Sockets that keep messages apart. macOS has the second kind only; it does not tell of a closed peer."""
HEAP_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class DecodeTask:
    """One file to decode: the client's name for it, the open file, and the path of the canonical one."""

    field: str
    kind: Kind
    source: BinaryIO
    target: Path


def _open_targets(tasks: Sequence[DecodeTask]) -> list[BinaryIO]:
    """Open the files that decoded ones are written to. This touches the disk."""
    with ExitStack() as opened:
        targets: list[BinaryIO] = [opened.enter_context(task.target.open("w+b")) for task in tasks]
        opened.pop_all()
    return targets


class Decoder:
    """One `server.decoding.child` process, started when needed and again should it die."""

    def __init__(self, libraries: Libraries, children: int) -> None:
        self._command = own_process("server.decoding.child", libraries, str(children))
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process, as long as it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Start the process unless it runs, and wait for its codecs. Raises ApiError `busy` if that fails."""
        async with self._starting:
            if self.pid is not None:
                return
            await self.stop()
            ours, theirs = socket.socketpair(socket.AF_UNIX, MESSAGES)
            # A clean environment: no keys, no proxies, no addresses. One thread and one heap: children are
            # bounded in both. Buffers come from the heap: for a short life, mapping each anew costs more.
            environment = {
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
                "LANG": "C.UTF-8",
                "OPENBLAS_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
                "MALLOC_MMAP_THRESHOLD_": str(HEAP_BYTES),
                "MALLOC_TRIM_THRESHOLD_": str(HEAP_BYTES),
            }
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end tells the process that we are gone
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
            theirs.close()
            ours.setblocking(False)
            self._control = ours
            try:
                async with asyncio.timeout(DECODER_START_TIMEOUT_S):
                    ready = await asyncio.get_running_loop().sock_recv(ours, 16)
            except (TimeoutError, OSError) as error:
                ready = b""
                log.error("the decoding sandbox did not start: %s", error)
            if ready != READY:
                await self.stop()
                raise ApiError("busy", "The decoder is not running; try again.")

    async def stop(self) -> None:
        """End the process; it ends by itself once its socket closes."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            await asyncio.to_thread(process.wait)

    def send(self, message: bytes, descriptors: Sequence[int]) -> None:
        """Hand a request to the next child. Raises OSError if the process is gone."""
        assert self._control is not None
        socket.send_fds(self._control, [message], descriptors)


class Sandbox:
    """Decodes the files of at most `decode_processes` requests at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = Turns(settings.decode_processes)
        self.plain = Decoder("plain", settings.decode_processes)
        self.full = Decoder("full", settings.decode_processes)

    async def start(self) -> None:
        """Start the process that nearly every request needs. Raises ApiError `busy`."""
        await self.plain.start()

    async def stop(self) -> None:
        """End all processes."""
        await self.plain.stop()
        await self.full.stop()

    async def decode(self, tasks: Sequence[DecodeTask], tenant: str) -> list[DecodedFile]:
        """Decode the files of one request in one child. Raises ApiError for the first rejected file."""
        needed = {libraries_for(task.source) for task in tasks}
        decoder = self.full if "full" in needed else self.plain
        size = sum(os.fstat(task.source.fileno()).st_size for task in tasks)
        heavy = size > HEAVY_BYTES
        async with self._turns.turn(tenant, heavy):
            return await self._decode_surely(decoder, tasks, heavy)

    async def _decode_surely(
        self, decoder: Decoder, tasks: Sequence[DecodeTask], heavy: bool
    ) -> list[DecodedFile]:
        """Decode, with a new process if the old one is gone."""
        for last_try in (False, True):
            await decoder.start()
            try:
                return await self._decode(decoder, tasks, heavy)
            except OSError as error:
                log.warning("the decoding sandbox is gone (%s), starting another", error)
                if last_try:
                    raise ApiError("busy", "The decoder is not running; try again.") from error
        raise AssertionError("unreachable")

    async def _decode(self, decoder: Decoder, tasks: Sequence[DecodeTask], heavy: bool) -> list[DecodedFile]:
        settings = self._settings
        message = json.dumps(
            {
                "kinds": [task.kind for task in tasks],
                "heavy": heavy,
                "timeout_s": settings.decode_timeout_s,
                "limits": asdict(limits_of(settings)),
            }
        ).encode()
        targets = await asyncio.to_thread(_open_targets, tasks)
        # A socket, not a pipe: event loops differ in who closes a pipe they were given, and when.
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, ExitStack() as opened:
            descriptors = [theirs.fileno()]
            for task, target in zip(tasks, targets, strict=True):
                opened.enter_context(target)
                descriptors += [task.source.fileno(), target.fileno()]
            try:
                decoder.send(message, descriptors)
            except OSError:
                ours.close()
                raise
        with ours:
            answers = (await self._read_lines(ours, len(tasks))).splitlines()
        return [self._result(task, answers[i] if i < len(answers) else None) for i, task in enumerate(tasks)]

    async def _read_lines(self, replies: socket.socket, count: int) -> bytes:
        """The `count` lines that a child writes. There are fewer if it ends early, as at its time limit."""
        loop, said = asyncio.get_running_loop(), b""
        try:
            async with asyncio.timeout(self._settings.decode_timeout_s + 5.0):
                # Not until its end: tearing a process down takes longer than decoding a small file.
                while said.count(b"\n") < count and (chunk := await loop.sock_recv(replies, 65_536)):
                    said += chunk
        except (TimeoutError, ConnectionError):
            return b""
        return said

    @staticmethod
    def _result(task: DecodeTask, line: bytes | None) -> DecodedFile:
        if line is None:
            raise ApiError(
                "undecodable_file", "The file is damaged, or takes too long to decode.", field=task.field
            )
        answer = json.loads(line)
        if "code" in answer:
            raise ApiError(answer["code"], answer["detail"], field=task.field, limit=answer["limit"])
        return DecodedFile.of(answer, task.field)
