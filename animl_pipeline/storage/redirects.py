"""Which redirects of a web server are followed: never from https to http, and never to an address that is nearer to this machine.

A host on the internet may redirect to another one there. It may not make this machine read from its own network, from itself, or
from the address where a cloud's machines find their credentials.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from urllib.parse import urljoin, urlsplit, urlunsplit

from animl_pipeline.core.errors import RemoteError, redact_url

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
METADATA = frozenset({"168.63.129.16"})
"""Addresses of cloud services for the machine itself that count as public by their number: Azure's."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Nearness(IntEnum):
    """How near an address is to this machine. A redirect leads to the same or to a lower value."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    LINK_LOCAL = 3


def nearness(host: str) -> Nearness:
    """The nearness of an IP address, also of an IPv4 address inside an IPv6 one. The name of a host counts as public, except localhost."""
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        local = host.rstrip(".").lower()
        return Nearness.LOOPBACK if local == "localhost" or local.endswith(".localhost") else Nearness.PUBLIC
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inside is not None:
            return nearness(str(inside))
    if ip.is_link_local or str(ip) in METADATA:
        return Nearness.LINK_LOCAL
    if ip.is_loopback or ip.is_unspecified:
        return Nearness.LOOPBACK
    return Nearness.PUBLIC if ip.is_global else Nearness.PRIVATE


def redirect_target(address: str, location: str | None) -> str:
    """The address that ``address`` redirects to, without a user, password and fragment.

    Raises:
        RemoteError: ``refused``: it is not valid, not http or https, or leads from https to http.
    """
    shown = redact_url(address)
    try:
        parts = urlsplit(urljoin(address, location or ""))
        port = f":{parts.port}" if parts.port else ""
    except ValueError as e:
        raise RemoteError("refused", f"{shown} redirects to an address that is not valid") from e
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RemoteError("refused", f"{shown} redirects to an address that is not valid")
    if urlsplit(address).scheme == "https" and parts.scheme == "http":
        raise RemoteError("refused", f"{shown} redirects from https to http, which anybody on the way could read or change; use the new address")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, host + port, parts.path, parts.query, ""))


def refuse_nearer(host: str, found: Nearness, allowed: Nearness | None) -> None:
    """Refuse an address that is nearer than ``allowed`` (None: any).

    Raises:
        RemoteError: ``refused``.
    """
    if allowed is not None and found > allowed:
        kind = found.name.lower().replace("_", "-")
        raise RemoteError("refused", f"a redirect leads to {host}, a {kind} address, which its host may not ask for; use that address itself")
