"""The folder where a worker's ranks meet: a killed worker's is removed, a living one's is not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.meeting import PREFIX, meeting_place

HOLD = """
from workers.meeting import meeting_place
with meeting_place() as meeting:
    meeting.write_text("met")
    print(meeting, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(temporary: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Starts processes that hold a meeting place each."""
    started = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip()).parent

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_holds_is_not(
    temporary: Path, holder: Callable[[], tuple[subprocess.Popen[str], Path]]
) -> None:
    killed, left = holder()
    _, held = holder()
    killed.kill()
    killed.wait()
    assert left.exists()
    with meeting_place() as meeting:
        assert not meeting.exists()
        assert meeting.parent.stat().st_mode & 0o777 == 0o700
        assert set(temporary.iterdir()) == {held, meeting.parent}
    assert set(temporary.iterdir()) == {held}


def test_a_new_folder_that_another_worker_takes_for_a_leftover_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def taken_once(prefix: str) -> str:
        made.append(Path(make(prefix=prefix)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", taken_once)
    with meeting_place() as meeting:
        assert meeting.parent == made[1]
    assert not any(temporary.iterdir())


def test_a_link_of_that_name_is_left_alone_with_what_it_points_to(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "file").mkdir(parents=True)
    (temporary / f"{PREFIX}link").symlink_to(precious)
    with meeting_place():
        pass
    assert (precious / "file").exists()
