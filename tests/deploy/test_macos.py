"""The service where Linux's own calls are missing: a pretended macOS, without those calls."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_up import COMMAND, ENVIRONMENT, Inputs, cointeract, inputs, start_stack, stop
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

__all__ = ["inputs"]

PRETENCE = """
import os, sys
# Libraries of this machine, loaded under its own name: theirs to know what they run on.
import asyncio, ctypes.util, resource, socket, subprocess, sysconfig, tempfile, urllib.request
sysconfig.get_config_vars()
libraries = "uvloop numpy soundfile soxr av httpx c2pa multiprocessing.util platform"
for library in libraries.split():
    __import__(library)

class NoPrctl(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError("there is no prctl")
        return super().__getattr__(name)

pair, popen, limit, read_text = socket.socketpair, subprocess.Popen.__init__, resource.setrlimit, None

def socketpair(family=socket.AF_UNIX, kind=socket.SOCK_STREAM, *more):
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(43, "Protocol not supported")
    return pair(family, kind, *more)

def setrlimit(kind, bounds):
    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    limit(kind, bounds)

def start(self, *arguments, env=None, **more):
    if env is not None:  # also where the environment is a clean one
        env = {**env, "PYTHONPATH": f"{SITE}:{env.get('PYTHONPATH', '')}", "PATH": os.environ["PATH"]}
    popen(self, *arguments, env=env, **more)

def audit(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "there is no /proc", arguments[0])

ctypes.CDLL, socket.socketpair, resource.setrlimit = NoPrctl, socketpair, setrlimit
subprocess.Popen.__init__ = start
del os.memfd_create, os.posix_fadvise
sys.addaudithook(audit)
sys.platform = "darwin"
"""


@pytest.fixture
def macos(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that believes to run on macOS, and all that it starts."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"SITE = {str(site)!r}\n{PRETENCE}")
    (site / "sysctl").write_text("#!/bin/sh\necho 5B2F6C1E-0000-4000-8000-000000000001\n")
    (site / "sysctl").chmod(0o755)
    return {**ENVIRONMENT, "PYTHONPATH": str(site), "PATH": f"{site}:{os.environ['PATH']}"}


def test_decoding_without_the_kernels_filter_is_refused_until_it_is_allowed(
    tmp_path: Path, macos: dict[str, str]
) -> None:
    stack = start_stack(tmp_path, environment=macos)
    assert stack.process.wait(60) == 1
    said = " ".join(stack.said().split())
    assert "Linux on x86-64 and arm64 only" in said
    assert "COINTERACT_ALLOW_UNCONFINED_DECODING=true" in said
    refused = cointeract(
        "serve", "--data", str(tmp_path / "other"), **macos, COINTERACT_REDIS_URL="unix:///none"
    )
    assert refused.returncode == 1
    assert "COINTERACT_ALLOW_UNCONFINED_DECODING=true" in " ".join(refused.stderr.split())


def test_once_allowed_a_video_is_made_and_a_killed_worker_replaced(
    tmp_path: Path, inputs: Inputs, macos: dict[str, str]
) -> None:
    environment = {**macos, "COINTERACT_ALLOW_UNCONFINED_DECODING": "true"}
    stack = start_stack(tmp_path, environment=environment)
    parts: dict[str, int] = {}
    try:
        eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, 90, "the panel")
        assert "is ready" in stack.said(), stack.said()
        assert "nothing confines the process that decodes" in " ".join(stack.said().split())
        video = tmp_path / "out.mp4"
        client = subprocess.Popen(
            [*COMMAND, "generate", "--url", stack.url, *inputs.arguments(), "--steps=40", "-o", str(video)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert client.stdout is not None
        for line in client.stdout:
            if "denoising" in line:
                break
        os.kill(stack.children()["worker"], signal.SIGKILL)
        _, errors = client.communicate(timeout=90)
        assert client.returncode == 0, errors
        assert video.stat().st_size > 1000
        parts = stack.children()
    finally:
        stop(stack)
    for name, pid in parts.items():
        assert not Path(f"/proc/{pid}").exists(), name


def test_the_names_of_processes_tell_the_living_from_the_dead(macos: dict[str, str]) -> None:
    if shutil.which("ps") is None:
        pytest.skip("ps is not installed")
    program = (
        "import os, subprocess, sys\n"
        "from jobs.identity import is_surely_dead, lives_here, process_name\n"
        "other = subprocess.Popen(['sleep', '60'])\n"
        "mine, name = process_name('me'), process_name('other', other.pid)\n"
        "assert lives_here(mine) and lives_here(name) and not is_surely_dead(name), (mine, name)\n"
        "assert is_surely_dead(name[:-1] + str((int(name[-1]) + 1) % 10)), 'another process with that id'\n"
        "other.kill()\n"
        "assert is_surely_dead(name) and not lives_here(name), 'a zombie'\n"
        "other.wait()\n"
        "assert is_surely_dead(name)\n"
        "assert not is_surely_dead('elsewhere.00000000-1-1')\n"
        "print('told apart')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=macos, capture_output=True, text=True, check=False
    )
    assert done.stdout == "told apart\n", done.stderr


def test_chaos_says_that_it_needs_linux(macos: dict[str, str]) -> None:
    refused = cointeract("chaos", "--jobs", "1", **macos)
    assert refused.returncode == 1
    assert "needs Linux" in refused.stderr


@pytest.fixture(autouse=True)
def _only_on_linux() -> None:
    if sys.platform != "linux":
        pytest.skip("it pretends what is real here")
