"""Which addresses mean this machine itself, and which networks are the operator's own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
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


def network_of(address: str) -> str:
    """Whom the client with this address counts for where clients share: its IPv4 address, or its IPv6 network
    of 64 bits, in which one client may choose among any number of addresses.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


def goes_through_proxies(url: str) -> bool:
    """Whether the environment's proxies are to be used for `url`: never on the way to this machine itself."""
    return not is_loopback(urlsplit(url).hostname or "")


IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_PRIVATE_USE: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""What networks of one's own use. This machine itself and link-local addresses, where clouds tell secrets to
whoever asks, are not among them: they must be named as addresses.
"""
_TELL_SECRETS: Final = tuple(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")
)
"""Where clouds (Alibaba, AWS, Google) do so at addresses of private use."""
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class PrivateNetworks:
    """Hosts and networks of the operator's own to which requests may lead, though they are not public.

    A host that is named may have addresses of private use; other addresses must lie in a network that is.
    """

    hosts: frozenset[str] = frozenset()
    """Names, or name:port."""
    networks: tuple[IpNetwork, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> PrivateNetworks:
        """Of host names, names with a port, addresses and CIDRs. Raises ValueError naming a bad one."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]")))
                continue
            except ValueError as error:
                if "/" in entry:
                    raise ValueError(f"{entry!r} is no network: {error}") from error
            name, colon, port = entry.lower().partition(":")
            if not _HOST_NAME.fullmatch(name) or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
                raise ValueError(f"{entry!r} is neither a host name, with or without port, nor a network")
            hosts.add(entry.lower())
        return cls(frozenset(hosts), tuple(networks))

    @property
    def any(self) -> bool:
        """Whether anything is named."""
        return bool(self.hosts or self.networks)

    def allows(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to this address of the host may be made."""
        try:
            ip: IpAddress = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address):
            if ip.scope_id is not None:
                return False
            ip = ip.ipv4_mapped or ip
        named = host.lower() in self.hosts or f"{host.lower()}:{port}" in self.hosts
        is_usual = _lies_in(ip, _PRIVATE_USE) and ip not in _TELL_SECRETS
        return _lies_in(ip, self.networks) or (named and is_usual)


def _lies_in(ip: IpAddress, networks: Iterable[IpNetwork]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)
