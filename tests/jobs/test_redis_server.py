"""The embedded server: which program is taken, and what becomes of the data when another one is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redis import Redis

from contract.settings import Settings
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer, running_redis, server_program


def install(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_an_installed_server_the_one_in_the_wheel_runs_and_keeps_its_data(
    nothing_installed: Path, tmp_path: Path
) -> None:
    program = server_program()
    assert (program.kind, program.path.name) == ("valkey", "valkey-server")
    for _ in range(2):
        with running_redis(tmp_path / "data") as server:
            queue = JobQueue(Settings(data_dir=tmp_path), server.url)
            epoch = queue.epoch().partition(":")[0]  # made anew if the file was lost
            queue.ping()
    with running_redis(tmp_path / "data") as server:
        assert JobQueue(Settings(data_dir=tmp_path), server.url).epoch().startswith(f"{epoch}:")


@pytest.mark.parametrize(
    ("name", "said", "kind", "version"),
    [
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc bits=64", "redis", 7),
        ("redis-server", "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc bits=64", "valkey", 8),
        ("valkey-server", "Valkey server v=10.0.0 sha=00000000:0 malloc=libc bits=64", "valkey", 10),
    ],
)
def test_an_installed_server_comes_first(
    nothing_installed: Path, name: str, said: str, kind: str, version: int
) -> None:
    path = install(nothing_installed, name, f"echo '{said}'")
    program = server_program()
    assert (program.path, program.kind, program.version) == (path, kind, version)


@pytest.mark.parametrize(
    "script", ["echo 'Redis server v=6.2.14 sha=0'", "exit 127", "echo 'some other tool 1.0'"]
)
def test_a_server_that_is_too_old_or_broken_is_passed_over(nothing_installed: Path, script: str) -> None:
    install(nothing_installed, "redis-server", script)
    assert server_program().path.parent != nothing_installed
    installed = install(nothing_installed, "valkey-server", "echo 'Valkey server v=9.0.0 sha=0'")
    assert server_program().path == installed


def test_without_any_server_the_message_says_what_to_install(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(nothing_installed, "redis-server", "echo 'Redis server v=6.2.14 sha=0'")
    monkeypatch.setattr("jobs.redis_server._WHEEL", "no-such-distribution")
    with pytest.raises(RuntimeError, match=r"redis-server is version 6\. Install .*COINTERACT_REDIS_URL"):
        server_program()


def test_another_program_starts_on_the_folder_that_the_first_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7 cannot read what Valkey 9 writes, and refuses to start on it; an update must not do that."""
    path = os.environ["PATH"]
    data = tmp_path / "data"
    for search in ("/nonexistent", path, "/nonexistent", path):
        monkeypatch.setenv("PATH", search)
        with running_redis(data) as server:
            client = Redis.from_url(server.url)
            client.incr(f"starts of {server_program().kind}")
    if server_program().kind == "valkey":
        pytest.skip("no Redis is installed here")
    with running_redis(data) as server:
        assert Redis.from_url(server.url).get("starts of redis") == b"2"


def test_a_long_folder_name_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / ("x" * 100))
    assert len(str(server.socket)) < 100
    server.start()
    server.stop()
