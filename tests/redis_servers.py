"""Redis as operators run it: with TLS and users, or a primary with a replica and a Sentinel."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis.exceptions import RedisError

from deploy.stack import free_port

HOST = "127.0.0.1"
SERVICE = "cointeract"


@dataclass
class Server:
    """One process of redis-server."""

    folder: Path
    arguments: tuple[str, ...]
    asks: Redis
    """A client that may do everything."""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed; the embedded one has no Sentinel and no TLS")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [program, *self.arguments], cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.asks.ping()
                return
            except (RedisError, OSError):
                if time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log.txt").read_text()) from None
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Operated:
    """What takes the place of an embedded server."""

    url: str
    servers: list[Server] = field(default_factory=list)

    def stop(self) -> None:
        for server in self.servers:
            server.kill()


@contextmanager
def secured(folder: Path, rights: str) -> Iterator[Operated]:
    """A server that speaks TLS only, with a user that has these rights and no other user but "admin"."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert(HOST, "localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    (folder / "users.acl").write_text(
        f"user default off\nuser admin on >boss ~* &* +@all\nuser cointeract on >secret {rights}\n"
    )
    port = free_port(HOST)
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem")
    arguments = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *files)
    asks = Redis(
        host=HOST, port=port, ssl=True, ssl_ca_certs=str(folder / "ca.pem"), username="admin", password="boss"
    )
    server = Server(folder, (*arguments, "--aclfile", "users.acl", "--save", "", "--bind", HOST), asks)
    url = f"rediss://cointeract:secret@{HOST}:{port}/0?ssl_ca_certs={folder / 'ca.pem'}"
    operated = Operated(url, [server])
    try:
        server.start()
        yield operated
    finally:
        operated.stop()


@dataclass
class Watched(Operated):
    """A primary, a replica and a Sentinel, which makes the replica the primary when the primary is gone."""

    def primary(self) -> Server:
        """The server that takes writes."""
        for server in self.servers[:2]:
            try:
                if server.process is not None and server.asks.info("replication")["role"] == "master":
                    return server
            except RedisError:
                continue
        raise AssertionError("no primary")

    def has_replica(self) -> bool:
        """Whether the primary has a replica that has caught up, so that it may be killed."""
        info = self.primary().asks.info("replication")
        return bool(info["connected_slaves"]) and info["slave0"]["state"] == "online"

    def known_primary(self) -> int:
        """The port of the primary, as the Sentinel says."""
        found = self.servers[2].asks.execute_command("SENTINEL", "get-master-addr-by-name", SERVICE)
        return int(found[1])


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    ports = [free_port(HOST) for _ in range(3)]
    plain = ("--bind", HOST, "--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0")
    sentinel = folder / "sentinel" / "sentinel.conf"
    sentinel.parent.mkdir(parents=True)
    sentinel.write_text(
        f"port {ports[2]}\nbind {HOST}\nsentinel monitor {SERVICE} {HOST} {ports[0]} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 4000\n"
    )
    clients = [Redis(host=HOST, port=port, socket_timeout=2) for port in ports]
    servers = [
        Server(folder / "one", ("--port", str(ports[0]), *plain), clients[0]),
        Server(
            folder / "two", ("--port", str(ports[1]), *plain, "--replicaof", HOST, str(ports[0])), clients[1]
        ),
        Server(sentinel.parent, (str(sentinel), "--sentinel"), clients[2]),
    ]
    operated = Watched(f"redis+sentinel://{HOST}:{ports[2]}/{SERVICE}/0", servers)
    try:
        for server in servers:
            server.start()
        yield operated
    finally:
        operated.stop()
