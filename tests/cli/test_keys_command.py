from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from cli.app import app
from contract.job import Priority
from jobs.artifacts import FolderStore
from server.keys import Scope, authenticate

run = CliRunner()


def test_a_created_key_is_printed_alone_and_works(tmp_path: Path) -> None:
    arguments = [
        "--scope",
        "read",
        "--max-queued",
        "3",
        "--highest-priority",
        "high",
        "--data",
        str(tmp_path),
    ]
    done = run.invoke(app, ["keys", "create", "studio", *arguments])
    assert done.exit_code == 0, done.output
    key = authenticate(FolderStore(tmp_path / "storage"), done.stdout.strip())
    assert key is not None
    assert (key.name, key.scopes, key.limits.max_queued) == ("studio", (Scope.READ,), 3)
    assert key.highest_priority is Priority.HIGH


def test_keys_are_listed_without_their_secrets(tmp_path: Path) -> None:
    token = run.invoke(app, ["keys", "create", "studio", "--data", str(tmp_path)]).stdout.strip()
    done = run.invoke(app, ["keys", "list", "--data", str(tmp_path)])
    assert "studio" in done.stdout
    assert token.split("_")[1] in done.stdout
    assert token.split("_", 2)[2] not in done.stdout


def test_a_revoked_key_works_no_more_and_cannot_be_revoked_again(tmp_path: Path) -> None:
    token = run.invoke(app, ["keys", "create", "studio", "--data", str(tmp_path)]).stdout.strip()
    revoke = ["keys", "revoke", token.split("_")[1], "--data", str(tmp_path)]
    assert run.invoke(app, revoke).exit_code == 0
    assert authenticate(FolderStore(tmp_path / "storage"), token) is None
    again = run.invoke(app, revoke)
    assert again.exit_code == 1
    assert "no valid key" in again.stderr


def test_a_key_needs_a_name_of_one_line(tmp_path: Path) -> None:
    done = run.invoke(app, ["keys", "create", "two\nlines", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "printable" in done.stderr
