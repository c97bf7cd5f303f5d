"""By which names this server is called, and from which web pages.

A foreign name that resolves to this machine (DNS rebinding) would let a web page talk to us as if it were
ours. So only known names are answered: loopback ones, addresses as such (a browser that rebinds sends a
name), the host of `public_url`, and `allowed_hosts`.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from contract.network import is_loopback
from contract.settings import Settings

REQUEST_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    "Range",
)
ANSWER_HEADERS: Final = (
    "Accept-Ranges", "Content-Disposition", "Content-Range", "ETag", "Idempotency-Replayed", "Location",
    "openai-poll-after-ms", "Preference-Applied", "Retry-After", "x-should-retry",
)  # fmt: skip


def host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    try:
        return urlsplit(f"//{host.strip()}").hostname or ""
    except ValueError:
        return ""


def is_known_host(host: str, settings: Settings) -> bool:
    """Whether a Host header names this server."""
    name = host_name(host)
    if is_loopback(host) or _is_address(name):
        return True
    public = urlsplit(settings.public_url).hostname if settings.public_url else None
    return name == public or any(_matches(name, allowed) for allowed in settings.allowed_hosts)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _matches(name: str, allowed: str) -> bool:
    allowed = allowed.lower()
    return name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))


def is_known_origin(origin: str, host: str, settings: Settings) -> bool:
    """Whether an Origin header is of our own page, or of one that may use this server."""
    if origin.partition("://")[2] == host or origin in settings.allowed_origins:
        return True
    return settings.public_url is not None and origin == origin_of(settings.public_url)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app`, telling browsers that pages of `allowed_origins` may read its answers."""
    if not settings.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.allowed_origins,
        allow_methods=("GET", "HEAD", "POST", "PATCH", "DELETE"),
        allow_headers=REQUEST_HEADERS,
        expose_headers=ANSWER_HEADERS,
        max_age=3600,
    )
