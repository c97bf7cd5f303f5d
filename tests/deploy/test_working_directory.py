"""`cointeract` in a folder that holds a user's own Python files, named like our packages or the library's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.test_up import ENVIRONMENT, Inputs, cointeract, inputs, start_stack, stop
from tests.faults.stack import eventually

pytestmark = pytest.mark.slow

__all__ = ["inputs"]

OWN_FILES = ("cli", "contract", "deploy", "jobs", "model", "server", "workers", "random", "redis", "uvicorn")


@pytest.mark.parametrize("safe_path", [{}, {"PYTHONSAFEPATH": "1"}], ids=["as usual", "PYTHONSAFEPATH"])
def test_a_users_own_files_in_the_working_directory_are_never_imported(
    tmp_path: Path, inputs: Inputs, safe_path: dict[str, str]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in OWN_FILES:
        (own / f"{name}.py").write_text(f'raise SystemExit("imported the user\'s own {name}.py")')
    stack = start_stack(tmp_path, cwd=own, environment={**ENVIRONMENT, **safe_path})
    try:
        eventually(lambda: "is ready" in stack.said() or stack.process.poll() is not None, 60, "the panel")
        assert "is ready" in stack.said(), stack.said()
        video = tmp_path / "out.mp4"
        done = cointeract("generate", "--url", stack.url, *inputs.arguments(), "-o", str(video), cwd=own)
        assert done.returncode == 0, done.stderr
        assert video.stat().st_size > 1000
    finally:
        stop(stack)
    for log in (stack.data / "logs").iterdir():
        assert "the user's own" not in log.read_text(), log
