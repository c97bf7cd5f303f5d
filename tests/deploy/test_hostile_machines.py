"""`cointeract up` where the machine is not as one likes it: odd paths, proxies, damaged files, freezes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli.demo import running_stack
from cli.health import why_api_is_unhealthy
from contract.settings import Settings
from deploy.stack import free_port
from tests.deploy.test_up import ENVIRONMENT, Inputs, RunningStack, cointeract, inputs, start_stack, stop
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

__all__ = ["inputs"]

NOBODY = f"127.0.0.1:{free_port('127.0.0.1')}"
PROXIES = {
    "http_proxy": f"http://{NOBODY}",
    "https_proxy": f"http://{NOBODY}",
    "ALL_PROXY": f"socks5://{NOBODY}",
}
START_TIMEOUT_S = 90.0

Start = Callable[..., RunningStack]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts stacks, waits until they say that they are ready, and stops them."""
    stacks: list[RunningStack] = []

    def started(folder: Path, **environment: str) -> RunningStack:
        folder.mkdir(parents=True, exist_ok=True)
        stack = start_stack(folder, environment={**ENVIRONMENT, **environment})
        stacks.append(stack)
        eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, START_TIMEOUT_S)
        assert "is ready" in stack.said(), stack.said()
        return stack

    yield started
    for stack in stacks:
        stop(stack)


def renders(stack: RunningStack, inputs: Inputs, video: Path) -> None:
    """A job goes through the stack from one end to the other."""
    eventually(lambda: is_ready(stack), 60, "readiness")
    done = cointeract("generate", "--url", stack.url, *inputs.arguments(), "-o", str(video))
    assert done.returncode == 0, done.stdout + done.stderr
    assert video.stat().st_size > 1000


def is_ready(stack: RunningStack) -> bool:
    try:
        return httpx.get(f"{stack.url}/readyz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def redis_file(stack: RunningStack) -> Path:
    """The file that the embedded Redis appends to."""
    found = list(stack.data.glob("redis/*/*.aof"))
    return max(found, key=lambda path: path.stat().st_mtime)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "name",
    ["My Videos", "a=b", "Größe-日本", "100% #1? & 'it' \"too\"", "x" * 90],
    ids=["space", "equals sign", "letters", "marks", "long"],
)
def test_jobs_run_whatever_the_data_folder_is_called(
    start: Start, inputs: Inputs, tmp_path: Path, name: str
) -> None:
    renders(start(tmp_path / name), inputs, tmp_path / "out.mp4")


@pytest.mark.timeout(240)
def test_loopback_is_never_reached_through_a_proxy(
    start: Start, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = start(tmp_path, **PROXIES)
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    renders(stack, inputs, tmp_path / "out.mp4")
    port = int(stack.url.rpartition(":")[2])
    assert why_api_is_unhealthy(Settings(data_dir=tmp_path, port=port)) is None


@pytest.mark.timeout(240)
def test_the_stack_of_the_demo_is_found_beside_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    with running_stack(tmp_path / "data") as url:
        assert httpx.get(f"{url}/readyz", trust_env=False).json()["ready"]


@pytest.mark.timeout(240)
def test_a_redis_file_with_zeros_is_moved_aside_and_waiting_jobs_still_run(
    start: Start, inputs: Inputs, tmp_path: Path
) -> None:
    folder = tmp_path / "data/redis"
    folder.mkdir(parents=True)
    # As after a power cut: whole commands, then zeros where the file system had not yet written.
    command = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"
    (folder / "appendonly.aof").write_bytes(command * 100 + bytes(64) + command)
    stack = start(tmp_path)
    assert "could not read its own files" in stack.said()
    assert list((folder / "unreadable").rglob("*.aof"))
    renders(stack, inputs, tmp_path / "out.mp4")


@pytest.mark.timeout(240)
def test_a_running_stack_whose_redis_cannot_come_back_to_its_file_starts_the_jobs_it_accepts(
    start: Start, inputs: Inputs, tmp_path: Path
) -> None:
    stack = start(tmp_path)
    renders(stack, inputs, tmp_path / "before.mp4")
    redis = stack.children()["redis"]
    with redis_file(stack).open("ab") as file:
        file.write(bytes(4096))
    os.kill(redis, signal.SIGKILL)
    eventually(lambda: "could not read its own files" in stack.said(), 30, "a word about it")
    renders(stack, inputs, tmp_path / "after.mp4")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["serve", "redis", "reaper", "worker"])
def test_a_frozen_part_is_noticed_by_its_health_and_replaced(
    start: Start, inputs: Inputs, tmp_path: Path, victim: str
) -> None:
    stack = start(tmp_path, COINTERACT_WATCHDOG_S="8")
    before = stack.children()[victim]
    os.kill(before, signal.SIGSTOP)
    eventually(lambda: "answered no health check" in stack.said(), 90, "a word about it")
    eventually(lambda: stack.children().get(victim, before) != before, 40, f"another {victim}")
    renders(stack, inputs, tmp_path / "out.mp4")
    assert stack.said().count("died") == 1, "only the frozen part was replaced"
