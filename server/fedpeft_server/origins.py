"""Who is behind an address, as far as an address tells: limits of strangers are by that."""

import socket
from ipaddress import AddressValueError, IPv6Address

__all__ = ["origin_of", "site_of"]

SITE_BITS = 48
"""Of an IPv6 address: the largest block that one site is given (RFC 6177); it may use any address of it."""


def origin_of(connection: socket.socket) -> str:
    """Who is behind a connection, as far as an address tells: its IPv4 address, or its site's part of an IPv6 one."""
    try:
        name = connection.getpeername()
    except OSError:  # it is gone
        return ""
    return site_of(name[0]) if isinstance(name, tuple) else ""


def site_of(address: str) -> str:
    """The IPv4 address, one that is mapped into IPv6 as that; or the first ``SITE_BITS`` of an IPv6 address."""
    try:
        whole = IPv6Address(address)
    except AddressValueError:
        return address
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(IPv6Address(int(whole) >> (128 - SITE_BITS) << (128 - SITE_BITS)))
