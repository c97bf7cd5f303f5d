"""Which Python the Makefile installs with, and what it says if there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "tools/find_python.sh"


def install(folder: Path, name: str, version: str, *, venv: bool = True) -> Path:
    """A program that answers like a Python of that version; "" makes one that does not run."""
    program = folder / name
    answer = f"echo {version}" if version else "exit 127"
    program.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {0 if venv else 1} ;; *) {answer} ;; esac\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The only folder on PATH: what the script itself needs, and no Python."""
    for tool in ("sh", "cat"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    return tmp_path


def find(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments],
        env={**os.environ, "PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_each_supported_version_is_found_under_its_name_and_as_python3(folder: Path, version: str) -> None:
    program = install(folder, "python3", version)
    assert find(folder).stdout.strip() == str(program)
    named = install(folder, f"python{version}", version)
    assert find(folder).stdout.strip() == str(named)


def test_a_version_that_does_not_run_or_lacks_venv_is_passed_over(folder: Path) -> None:
    install(folder, "python3.11", "")
    install(folder, "python3.12", "3.12", venv=False)
    good = install(folder, "python3.13", "3.13")
    assert find(folder).stdout.strip() == str(good)


def test_without_a_usable_one_it_says_what_it_saw_and_what_to_do(folder: Path) -> None:
    install(folder, "python3", "3.9")
    install(folder, "python3.13", "3.13", venv=False)
    found = find(folder)
    assert (found.returncode, found.stdout) == (1, "")
    assert "python3 is Python 3.9" in found.stderr
    assert "apt install python3.13-venv" in found.stderr
    assert "make PYTHON=" in found.stderr


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.15"])
def test_a_named_one_of_another_version_is_refused_even_if_a_good_one_is_there(
    folder: Path, version: str
) -> None:
    install(folder, "python3.12", "3.12")
    named = install(folder, "mine", version)
    found = find(folder, str(named))
    assert (found.returncode, found.stdout) == (1, "")
    assert f"{named} is Python {version}" in found.stderr
    assert "3.11 to 3.14" in found.stderr


def test_a_named_one_is_taken_and_a_missing_one_named(folder: Path) -> None:
    install(folder, "python3.11", "3.11")
    mine = install(folder, "mine", "3.14")
    assert find(folder, str(mine)).stdout.strip() == str(mine)
    assert "there is no python9" in find(folder, "python9").stderr


def test_make_stops_with_that_message(folder: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    old = install(folder, "old", "3.9")
    done = subprocess.run(
        [make, "demo", f"PYTHON={old}", f"VENV={folder / 'venv'}"],
        cwd=SCRIPT.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "3.9" in done.stderr
    assert not (folder / "venv").exists()
