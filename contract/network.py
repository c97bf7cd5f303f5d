"""Which addresses mean this machine itself."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a bind address or a Host header (with or without port) means this machine itself."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def goes_through_proxies(url: str) -> bool:
    """Whether the environment's proxies are to be used for `url`: never on the way to this machine itself."""
    return not is_loopback(urlsplit(url).hostname or "")
