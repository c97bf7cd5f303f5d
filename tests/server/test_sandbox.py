"""The decoding sandbox: what a child cannot do even when the file has taken it over, and what outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobs.settings import Settings
from server import seccomp
from server.errors import ApiError
from server.sandbox import DecodedFile, DecodeTask, Sandbox
from tests.server.inputs import PERSON, SPEECH

ROOT = Path(__file__).parents[2]
confined = pytest.mark.skipif(not seccomp.supported(), reason="no seccomp filter for this machine")


def in_sandbox(work: Callable[[Sandbox], Awaitable[None]], **settings: object) -> None:
    async def run() -> None:
        sandbox = Sandbox(Settings.model_validate(settings))
        try:
            await work(sandbox)
        finally:
            await sandbox.stop()

    asyncio.run(run())


ATTEMPTS = {
    "open a file": "open('/etc/passwd').read()",
    "write a file": "open('/tmp/escaped', 'w')",
    "list a folder": "os.listdir('/')",
    "make a socket": "socket.socket()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "raise its own limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "stop its own alarm": "signal.setitimer(signal.ITIMER_REAL, 0)",
    "remove a file": "os.unlink('/tmp/x')",
    "change its name space": "ctypes.CDLL(None).unshare(0x10000000) and 1 / 0",
}


@confined
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_confined_code_cannot(attempt: str) -> None:
    program = (
        "import ctypes, os, resource, signal, socket\n"
        "from server import seccomp\n"
        "ctypes.CDLL(None)\n"
        "seccomp.confine()\n"
        f"try:\n    {ATTEMPTS[attempt]}\n"
        "except (OSError, ZeroDivisionError, ValueError):\n    os._exit(42)\n"
        "os._exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 42, ended.stderr


@confined
def test_confined_code_can_still_compute_and_use_open_files() -> None:
    program = (
        "import os, sys, threading\nfrom server import seccomp\nseccomp.confine()\n"
        "done = []\nthread = threading.Thread(target=done.append, args=(1,))\nthread.start()\nthread.join()\n"
        "os.write(1, str(sum(range(1000)) * len(done)).encode())\nos._exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "499500", ended.stderr


def test_the_sandbox_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COINTERACT_REDIS_URL", "redis://:secret@host")

    async def look(sandbox: Sandbox) -> None:
        await sandbox.start()
        assert sandbox._process is not None
        environment = Path(f"/proc/{sandbox._process.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert b"COINTERACT" not in environment

    in_sandbox(look)


def task(folder: Path, data: bytes, field: str = "audio", kind: str = "audio") -> DecodeTask:
    source = folder / f"{field}.in"
    source.write_bytes(data)
    return DecodeTask(field, kind, source, folder / f"{field}.out")  # type: ignore[arg-type]


def test_a_killed_sandbox_is_replaced_and_nobody_notices(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.decode([task(tmp_path, SPEECH)])
        assert sandbox._process is not None
        os.kill(sandbox._process.pid, signal.SIGKILL)
        sandbox._process.wait()
        (decoded,) = await sandbox.decode([task(tmp_path, SPEECH)])
        assert decoded == DecodedFile("audio/wav", rate=16_000, samples=16_000, seconds=1.0)

    in_sandbox(work)


def test_a_file_that_takes_too_long_is_refused_and_its_child_ends(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(ApiError, match="too long"):
            await sandbox.decode([task(tmp_path, SPEECH)])

    in_sandbox(work, decode_timeout_s=1e-4)


def test_the_field_of_the_bad_file_is_named_among_good_ones(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(ApiError) as caught:
            await sandbox.decode(
                [task(tmp_path, PERSON, "person_image", "image"), task(tmp_path, b"RIFF....WAVE" + b"x" * 99)]
            )
        assert caught.value.field == "audio"

    in_sandbox(work)


def test_many_requests_at_once_keep_their_files_apart(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        async def one(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            decoded = await sandbox.decode(
                [task(folder, PERSON, "person_image", "image"), task(folder, SPEECH)]
            )
            assert [file.format for file in decoded] == ["image/png", "audio/wav"]

        await asyncio.gather(*(one(number) for number in range(40)))

    in_sandbox(work)


def test_the_sandbox_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time\nfrom jobs.settings import Settings\nfrom server.sandbox import Sandbox\n"
        "async def main():\n"
        "    sandbox = Sandbox(Settings())\n    await sandbox.start()\n"
        "    print(sandbox._process.pid, flush=True)\n    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        sandbox = int(server.stdout.readline())
        server.kill()
    from tests.server.conftest import wait_for

    def gone() -> bool:
        try:
            state = Path(f"/proc/{sandbox}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"

    wait_for(gone, 10)
