from __future__ import annotations

import os
import subprocess
import sys

from jobs.identity import is_surely_dead, pid_of, process_name


def name_of_a_dead_process() -> str:
    code = "from jobs.identity import process_name; import sys; sys.stdout.write(process_name('w'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_living_worker_is_not_dead() -> None:
    name = process_name("gpu-0")
    assert name.startswith("gpu-0.")
    assert pid_of(name) == os.getpid()
    assert not is_surely_dead(name)


def test_a_worker_that_ended_on_this_machine_is_dead() -> None:
    assert is_surely_dead(name_of_a_dead_process())


def test_a_recycled_process_id_is_not_taken_for_the_worker() -> None:
    label, _, _ = process_name("w").rpartition("-")
    assert is_surely_dead(f"{label}-1")


def test_nothing_is_known_of_a_worker_elsewhere() -> None:
    dead = name_of_a_dead_process()
    space = dead.partition(".")[2].partition("-")[0]
    other = "0" * 8 if space != "0" * 8 else "1" * 8
    assert not is_surely_dead(dead.replace(space, other))
    assert not is_surely_dead("ghost")
    assert pid_of("ghost") is None


def test_a_zombie_is_dead() -> None:
    code = "from jobs.identity import process_name; print(process_name('w'), flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # over, but not yet buried
    assert is_surely_dead(name)
    process.wait()
    process.stdout.close()
