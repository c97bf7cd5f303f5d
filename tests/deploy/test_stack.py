from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack import (
    LONGEST_DELAY_S,
    Part,
    PartSupervisor,
    Restart,
    StackError,
    describe_exit,
    devices,
    free_port,
    only_stack_in,
    plan_workers,
    require_free_port,
)
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def part(name: str, argv: tuple[str, ...] = SLEEPER, phase: int = 0, stop_after_s: float = 5.0) -> Part:
    return Part(name, argv, lambda: None, stop_phase=phase, stop_after_s=stop_after_s)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[PartSupervisor]:
    supervisor = PartSupervisor(tmp_path / "logs", os.environ)
    yield supervisor
    supervisor.stop()


def wait_for_restarts(supervisor: PartSupervisor, count: int) -> list[Restart]:
    restarts: list[Restart] = []
    eventually(lambda: restarts.extend(supervisor.poll()) or len(restarts) >= count, what=f"{count} restarts")
    return restarts


def test_a_killed_part_is_started_again_at_once(supervisor: PartSupervisor) -> None:
    supervisor.start(part("victim"))
    first = supervisor.pid("victim")
    assert first is not None
    os.kill(first, signal.SIGKILL)

    (restart,) = wait_for_restarts(supervisor, 1)

    assert restart == Restart("victim", "killed by SIGKILL", 0.0, 1)
    assert str(restart) == "victim died (killed by SIGKILL)"
    assert supervisor.dying() == {}
    second = supervisor.pid("victim")
    assert second not in (None, first)


def test_a_part_that_keeps_dying_is_restarted_more_and_more_slowly(supervisor: PartSupervisor) -> None:
    supervisor.start(part("hopeless", (sys.executable, "-c", "print('no luck today'); raise SystemExit(3)")))

    restarts = wait_for_restarts(supervisor, 4)

    delays = [restart.delay_s for restart in restarts]
    assert delays == sorted(delays)
    assert delays[0] == 0 < delays[-1] <= LONGEST_DELAY_S
    assert [restart.in_a_row for restart in restarts] == [1, 2, 3, 4]
    assert {restart.exit_status for restart in restarts} == {"exit status 3"}
    assert "no luck today" in supervisor.log_tail("hopeless")
    words = "(exit status 3; 4 times in a row). Its last words:\nno luck today"
    assert str(restarts[-1]) == f"hopeless keeps dying {words}"
    assert words in supervisor.dying()["hopeless"]


def test_a_part_that_waits_for_its_restart_is_not_ready(supervisor: PartSupervisor) -> None:
    supervisor.start(part("hopeless", (sys.executable, "-c", "raise SystemExit(3)")))
    wait_for_restarts(supervisor, 3)
    assert supervisor.waiting() == {"hopeless": "restart"}
    assert supervisor.pid("hopeless") is None


def test_parts_stop_in_the_order_of_their_phases(supervisor: PartSupervisor, tmp_path: Path) -> None:
    journal = tmp_path / "stops"
    program = (
        "import signal, sys\n"
        "def stop(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    for name, phase in (("redis", 2), ("api", 1), ("worker", 0)):
        supervisor.start(part(name, (sys.executable, "-c", program, str(journal), name), phase))
    names = ("redis", "api", "worker")
    eventually(lambda: all(supervisor.log_tail(name) == "ready" for name in names))

    supervisor.stop()

    assert journal.read_text().split() == ["worker", "api", "redis"]


def test_a_part_that_ignores_sigterm_is_killed_after_its_time(supervisor: PartSupervisor) -> None:
    stubborn = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "signal.pause()\n"
    )
    supervisor.start(part("stubborn", (sys.executable, "-c", stubborn), stop_after_s=0.3))
    eventually(lambda: supervisor.log_tail("stubborn") == "deaf")
    pid = supervisor.pid("stubborn")
    assert pid is not None

    supervisor.stop()

    assert not is_running(pid)


def test_parts_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from deploy.stack import Part, PartSupervisor\n"
        "supervisor = PartSupervisor(Path(sys.argv[1]), os.environ)\n"
        f"supervisor.start(Part('orphan', {SLEEPER!r}, lambda: None, stop_phase=0))\n"
        "print(supervisor.pid('orphan'), flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    assert is_running(orphan)

    parent.kill()
    parent.wait()

    eventually(lambda: not is_running(orphan), what="the orphan's end")


def test_two_stacks_cannot_share_a_data_folder(tmp_path: Path) -> None:
    refused = pytest.raises(StackError, match=rf"process {os.getpid()}.*--data")
    with only_stack_in(tmp_path), refused, only_stack_in(tmp_path):
        raise AssertionError("both hold it")
    with only_stack_in(tmp_path):
        assert (tmp_path / "stack.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("obstacle", ["file", "read-only"])
def test_a_data_folder_that_cannot_be_written_is_refused_with_advice(tmp_path: Path, obstacle: str) -> None:
    if obstacle == "file":
        (tmp_path / "place").write_text("a file where a folder should be")
    else:
        (tmp_path / "place").symlink_to("/proc/self")  # a file system in which nobody can make anything
    with (
        pytest.raises(StackError, match=r"cannot be written.*--data"),
        only_stack_in(tmp_path / "place/data"),
    ):
        raise AssertionError("it was held")


def test_a_data_folder_that_we_make_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with only_stack_in(tmp_path / "new" / "data"):
            assert (tmp_path / "new").stat().st_mode & 0o077 == 0
            assert (tmp_path / "new/data").stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_a_taken_port_is_refused_with_advice() -> None:
    port = free_port("127.0.0.1")
    require_free_port("127.0.0.1", port)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(StackError, match="--port"):
            require_free_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", ["cpu"]), ("-1", ["cpu"]), ("0", ["cuda:0"]), ("2,5", ["cuda:0", "cuda:1"])],
)
def test_visible_gpus_decide_about_the_devices(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices() == expected


def test_every_device_and_every_checkpoint_gets_a_worker() -> None:
    two = {"speech": Path("/a"), "pose": Path("/b")}
    dealt = [(plan.devices, plan.checkpoint) for plan in plan_workers(["cuda:0", "cuda:1", "cuda:2"], two)]
    assert dealt == [("cuda:0", "speech"), ("cuda:1", "pose"), ("cuda:2", "speech")]
    shared = [(plan.devices, plan.checkpoint) for plan in plan_workers(["cpu"], two)]
    assert shared == [("cpu", "speech"), ("cpu", "pose")]


def test_devices_that_render_one_job_together_are_one_worker() -> None:
    gpus = [f"cuda:{index}" for index in range(5)]
    plans = plan_workers(gpus, {"speech": Path("/a")}, 2)
    assert [plan.devices for plan in plans] == ["cuda:0,cuda:1", "cuda:2,cuda:3", "cuda:4"]
    (processes,) = plan_workers(["cpu"], {"speech": Path("/a")}, 3)
    assert processes.devices == "cpu,cpu,cpu"
    with pytest.raises(StackError, match="--gpus-per-job 6 is too many: this machine has 5 GPUs"):
        plan_workers(gpus, {"speech": Path("/a")}, 6)


def test_exit_statuses_are_told_in_words() -> None:
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-64) in ("killed by signal 64", "killed by SIGRTMAX")
    assert describe_exit(1) == "exit status 1"
