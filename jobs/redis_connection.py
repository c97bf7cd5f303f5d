"""Connections to Redis as operators run it: one server, with TLS or a user of its own, or Sentinels that know
which of several is the primary.

URLs are those of redis-py (`redis://`, `rediss://`, `unix://`), whose query may name files for TLS
(`?ssl_ca_certs=/etc/ca.pem`), and for Sentinels

    redis+sentinel://user:password@host:26379,host:26379/SERVICE/DB?sentinel_password=…

with `rediss+sentinel://` for TLS to all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection, exceptions
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL_PORT: Final = 26379
_SENTINEL: Final = "+sentinel"
_OF_SENTINELS: Final = "sentinel_"


class _LeavesReplicas(AbstractConnection):
    """Drops the connection to a server that is a replica now: the address leads to the new primary."""

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except exceptions.ReadOnlyError as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise exceptions.ConnectionError("the server was made a replica") from error


class _Plain(_LeavesReplicas, Connection):
    pass


class _Secure(_LeavesReplicas, SSLConnection):
    pass


class _Local(_LeavesReplicas, UnixDomainSocketConnection):
    pass


_LEAVING: Final[dict[type, Callable[..., AbstractConnection]]] = {
    Connection: _Plain,
    SSLConnection: _Secure,
    UnixDomainSocketConnection: _Local,
}


def connect(url: str, *, timeout_s: float | None = 2.0, connect_timeout_s: float = 2.0) -> Redis:
    """A client that fails fast: Redis holds hints, and nobody should wait long for a hint.

    The client opens a broken connection again once, since Redis may have been restarted, or another may be
    the primary. It does not ask twice if Redis does not answer. Without `timeout_s` it may wait for ever, as
    a worker waits for work.

    Raises ValueError for a URL that is none.
    """
    limits: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "retry": Retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
    }
    if urlsplit(url).scheme.endswith(_SENTINEL):
        return _through_sentinels(url, limits, connect_timeout_s)
    options = _options_of(url)
    kind = options.pop("connection_class", Connection)
    return Redis.from_pool(ConnectionPool(connection_class=_LEAVING[kind], **limits, **options))


def _through_sentinels(url: str, limits: dict[str, Any], timeout_s: float) -> Redis:
    parts = urlsplit(url)
    scheme = parts.scheme.removesuffix(_SENTINEL)
    service, _, database = parts.path.strip("/").partition("/")
    credentials, _, hosts = parts.netloc.rpartition("@")
    if not service or not hosts:
        raise ValueError(
            f"{without_password(url)}: give {scheme}{_SENTINEL}://host:26379,host:26379/SERVICE/DB"
        )
    query = parse_qsl(parts.query)
    own = {name.removeprefix(_OF_SENTINELS): value for name, value in query if name.startswith(_OF_SENTINELS)}
    shared = urlencode([(name, value) for name, value in query if not name.startswith(_OF_SENTINELS)])
    # redis-py understands users, passwords and the options of TLS; the host is whichever Sentinels name.
    options = _options_of(f"{scheme}://{credentials}{'@' if credentials else ''}host/{database}?{shared}")
    is_secure = options.pop("connection_class", Connection) is SSLConnection
    options.pop("host")
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if is_secure:
        options["ssl"], tls["ssl"] = True, True
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [_address(host) for host in hosts.split(",")],
        sentinel_kwargs={
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            **tls,
            **own,
        },
    )
    found: Redis = sentinels.master_for(unquote(service), **limits, **options)  # type: ignore[no-untyped-call]
    return found


def _options_of(url: str) -> dict[str, Any]:
    return dict(parse_url(url))  # type: ignore[no-untyped-call]


def _address(host: str) -> tuple[str, int]:
    found = urlsplit(f"//{host}")
    if not found.hostname:
        raise ValueError(f"{host!r} is not the address of a Sentinel: give host:port")
    return found.hostname, found.port or SENTINEL_PORT


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return parts._replace(netloc=f"{user}{':…' if at else ''}{at}{hosts}", query="").geturl()
