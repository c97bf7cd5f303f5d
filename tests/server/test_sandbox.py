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

from contract.settings import Settings
from server.decoding import seccomp
from server.decoding.decoded import DecodedFile
from server.decoding.formats import ACCEPTED, KIND_OF_FIELD, Kind, RejectedFileError, sniff
from server.decoding.sandbox import DecodeTask, Sandbox
from server.errors import ApiError
from tests.server import fuzz
from tests.server.conftest import wait_for
from tests.server.decoded import CASES, LIMITS, decode_here
from tests.server.inputs import PERSON, SPEECH, audio_bytes, video_bytes

pytestmark = pytest.mark.slow

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
        "from server.decoding import seccomp\n"
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
        "import os, sys, threading\nfrom server.decoding import seccomp\nseccomp.confine()\n"
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
        environment = Path(f"/proc/{sandbox.plain.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert b"COINTERACT" not in environment

    in_sandbox(look)


def task(folder: Path, data: bytes, field: str = "audio", kind: str = "audio") -> DecodeTask:
    source = (folder / f"{field}.in").open("w+b")
    source.write(data)
    source.flush()
    return DecodeTask(field, kind, source, folder / f"{field}.out")  # type: ignore[arg-type]


CRASH = CASES.parent / "crash.heic"
MP4_SPEECH = audio_bytes("M4A")


@pytest.mark.parametrize("data", [SPEECH, MP4_SPEECH], ids=["plain", "full"])
def test_a_killed_sandbox_is_replaced_and_nobody_notices(tmp_path: Path, data: bytes) -> None:
    async def work(sandbox: Sandbox) -> None:
        (before,) = await sandbox.decode([task(tmp_path, data)], "t")
        assert before.rate == 16_000
        process = sandbox.plain if data is SPEECH else sandbox.full
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: process.pid is None, 5)
        assert await sandbox.decode([task(tmp_path, data)], "t") == [before]
        assert process.pid not in (None, pid)

    in_sandbox(work)


def libraries(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_ffmpeg_is_loaded_by_the_first_container_and_only_beside_the_usual_process(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        photo = task(tmp_path, PERSON, "person_image", "image")
        await sandbox.decode([photo, task(tmp_path, SPEECH)], "t")
        assert sandbox.full.pid is None
        image, speech, video = await sandbox.decode(
            [photo, task(tmp_path, MP4_SPEECH), task(tmp_path, video_bytes(4), "pose_video", "video")], "t"
        )
        assert (image.format, speech.format, video.format) == ("image/png", "audio/mp4", "video/mp4")
        assert "libavcodec" in libraries(sandbox.full.pid)
        assert "liblcms2" in libraries(sandbox.plain.pid)
        for heavy in ("libavcodec", "libheif", "libavif"):
            assert heavy in libraries(sandbox.full.pid)
            assert heavy not in libraries(sandbox.plain.pid)

    in_sandbox(work)


def test_the_first_bad_file_is_named_whether_or_not_another_one_is_a_container(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        for speech in (SPEECH, MP4_SPEECH):
            with pytest.raises(ApiError) as caught:
                await sandbox.decode(
                    [
                        task(tmp_path, PERSON[:-20], "person_image", "image"),
                        task(tmp_path, speech),
                        task(tmp_path, b"no video", "pose_video", "video"),
                    ],
                    "t",
                )
            assert (caught.value.code, caught.value.field) == ("truncated_file", "person_image")

    in_sandbox(work)


def test_a_file_of_the_wrong_kind_is_refused_in_the_same_words_by_both_processes(tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("image", "audio", "video")

    async def work(sandbox: Sandbox) -> None:
        for data in (PERSON, SPEECH, MP4_SPEECH, b"\x1a\x45\xdf\xa3" + b"x" * 99, b"what"):
            for kind in kinds:
                if sniff(task(tmp_path, data, "sniffed").source) in ACCEPTED[kind]:
                    continue
                for other in (SPEECH, MP4_SPEECH):  # which decides who gets them
                    with pytest.raises(ApiError) as caught:
                        await sandbox.decode(
                            [task(tmp_path, data, "wrong", kind), task(tmp_path, other)], "t"
                        )
                    assert (caught.value.code, caught.value.field) == ("unsupported_media_type", "wrong")
                    assert caught.value.limit == ", ".join(ACCEPTED[kind].values())

    in_sandbox(work)


def test_a_file_that_takes_too_long_is_refused_and_its_child_ends(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(ApiError, match="too long"):
            await sandbox.decode([task(tmp_path, SPEECH)], "t")

    in_sandbox(work, decode_timeout_s=1e-4)


def test_the_field_of_the_bad_file_is_named_among_good_ones(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(ApiError) as caught:
            await sandbox.decode(
                [
                    task(tmp_path, PERSON, "person_image", "image"),
                    task(tmp_path, b"RIFF....WAVE" + b"x" * 99),
                ],
                "t",
            )
        assert caught.value.field == "audio"

    in_sandbox(work)


def test_many_requests_at_once_keep_their_files_apart(tmp_path: Path) -> None:
    async def work(sandbox: Sandbox) -> None:
        async def one(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            decoded = await sandbox.decode(
                [task(folder, PERSON, "person_image", "image"), task(folder, SPEECH)], "t"
            )
            assert [file.format for file in decoded] == ["image/png", "audio/wav"]

        await asyncio.gather(*(one(number) for number in range(40)))

    in_sandbox(work)


def test_every_file_becomes_the_same_bytes_in_the_sandbox_and_outside_it(tmp_path: Path) -> None:
    files = [(path.name, path.read_bytes()) for path in sorted(CASES.iterdir())]
    assert len(files) > 15
    files += [(f"{number} {field}", data) for number, (field, data) in enumerate(fuzz.seeds())]

    async def work(sandbox: Sandbox) -> None:
        for name, data in files:
            audio = name.endswith((".aac", ".flac", ".mp3", ".ogg", ".webm", "audio"))
            field = "pose_video" if name.endswith("video") else "audio" if audio else "person_image"
            served = task(tmp_path, data, field, KIND_OF_FIELD[field])
            with_ffmpeg = DecodeTask(
                "audio", "audio", task(tmp_path, MP4_SPEECH, "other").source, tmp_path / "o"
            )
            local, source = tmp_path / "local", tmp_path / "source"
            source.write_bytes(data)
            expected: DecodedFile | RejectedFileError
            try:
                expected = decode_here(field, source, local, LIMITS)
            except RejectedFileError as error:
                expected = error
            for tasks in ([served], [served, with_ffmpeg]):
                if isinstance(expected, RejectedFileError):
                    with pytest.raises(ApiError) as caught:
                        await sandbox.decode(tasks, "t")
                    assert (caught.value.code, caught.value.detail) == (expected.code, expected.detail), name
                else:
                    found = await sandbox.decode(tasks, "t")
                    assert (found[0], served.target.read_bytes()) == (expected, local.read_bytes()), name

    in_sandbox(work)


def test_a_file_that_crashes_a_codec_is_refused_and_the_next_one_decoded(tmp_path: Path) -> None:
    """libheif 1.23 reads through a null pointer here; should it learn better, the file is still no photo."""

    async def work(sandbox: Sandbox) -> None:
        crash = task(tmp_path, CRASH.read_bytes(), "person_image", "image")
        for _ in range(3):
            with pytest.raises(ApiError) as caught:
                await sandbox.decode([crash], "t")
            assert (caught.value.code, caught.value.field) == ("undecodable_file", "person_image")
            assert await sandbox.decode([task(tmp_path, MP4_SPEECH)], "t")

    in_sandbox(work)


def test_the_sandbox_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time\nfrom contract.settings import Settings\n"
        "from server.decoding.sandbox import Sandbox\n"
        "async def main():\n"
        "    sandbox = Sandbox(Settings())\n    await sandbox.start()\n"
        "    print(sandbox.plain.pid, flush=True)\n    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        sandbox = int(server.stdout.readline())
        server.kill()

    def gone() -> bool:
        try:
            state = Path(f"/proc/{sandbox}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"

    wait_for(gone, 10)
