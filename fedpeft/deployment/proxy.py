"""The way out through an HTTP proxy: which one, its credentials, and a connection by CONNECT (RFC 9110, 9.3.6).

The proxy carries bytes of TLS that end at the coordinator: it sees the coordinator's name and port, and nothing of what
is said. Only ``http://`` proxies, with Basic authentication or none. Credentials show in no ``str`` and in no error.
"""

import os
import socket
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from fedpeft.errors import ConfigInvalid

__all__ = ["OFF", "Proxy", "ProxyRefused", "connected", "proxy_for", "proxy_trouble"]

OFF = "off"
"""Of site.toml: no proxy, whatever the environment says."""
HEAD_MAX_BYTES = 16 * 1024
"""Of a proxy's answer before the tunnel: a page of error text is longer, and read no further."""
MEANINGS = {
    403: "it does not allow this destination: ask whoever runs it to allow CONNECT to this host and port",
    405: "it does not allow CONNECT",
    407: "it wants a user and a password that it knows: set them in the proxy's URL or in network.proxy_auth_file",
    502: "it could not reach the coordinator",
    503: "it could not reach the coordinator",
    504: "it could not reach the coordinator in time",
}


class ProxyRefused(OSError):
    """The proxy is there and made no tunnel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy.

    Args:
        host, port: where it listens.
        user, password: for Basic authentication; both empty: none.
    """

    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, *, where: str) -> "Proxy":
        """From ``http://[USER:PASSWORD@]HOST:PORT``; a name and port alone will do.

        Args:
            url: the text.
            where: it stands, for errors, which do not quote it: it may hold a password.

        Raises:
            ConfigInvalid: it is none, or of another kind.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme != "http" or not host or any(mark in unquote(host) for mark in "\r\n\0 @/"):
            raise ConfigInvalid(f"Expected http://[USER:PASSWORD@]HOST:PORT in {where}, found another kind of address.")
        return cls(
            host=host, port=port or 3128, user=unquote(parts.username or ""), password=unquote(parts.password or "")
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def with_credentials(self) -> str:
        """The URL for libraries that open the tunnel themselves; never print it."""
        if not self.user:
            return str(self)
        return str(self).replace("http://", f"http://{quote(self.user, safe='')}:{quote(self.password, safe='')}@", 1)


def proxy_for(
    host: str, *, configured: str = "", credentials: str = "", environment: Mapping[str, str] = os.environ
) -> Proxy | None:
    """The proxy on the way to a host; None where there is none.

    Args:
        host: a name or an address.
        configured: ``network.proxy`` of site.toml: an address, ``off``, or empty: as the environment says, by
            ``https_proxy`` or ``all_proxy`` (small letters win).
        credentials: ``USER:PASSWORD``, instead of those in the address.
        environment: ``no_proxy`` counts in any case: a host that it names is reached without one.

    Raises:
        ConfigInvalid: the address is of another kind than ``http://``.
    """
    named = {key.lower(): value for key, value in sorted(environment.items()) if key.lower().endswith("_proxy")}
    url, where = configured, "site.toml: network.proxy"
    if not configured:
        found = next((name for name in ("https_proxy", "all_proxy") if named.get(name)), "")
        url, where = named.get(found, ""), f"the environment's {found}"
    if not url or url == OFF or urllib.request.proxy_bypass_environment(host, {"no": named.get("no_proxy", "")}):  # type: ignore[attr-defined]
        return None
    proxy = Proxy.parse(url, where=where)
    if credentials:
        user, _, password = credentials.partition(":")
        proxy = Proxy(host=proxy.host, port=proxy.port, user=user, password=password)
    return proxy


def connected(host: str, port: int, *, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """A TCP connection to a host, through the proxy if there is one.

    Raises:
        ProxyRefused: the proxy made no tunnel; names it and says why.
        OSError: nobody answered.
    """
    if proxy is None:
        return socket.create_connection((host, port), timeout_s)
    try:
        tunnel = socket.create_connection((proxy.host, proxy.port), timeout_s)
    except OSError as error:
        raise ProxyRefused(f"no proxy answers at {proxy}: {error}") from error
    try:
        tunnel.sendall(_request(host, port, proxy))
        status = _status(tunnel, proxy)
        if status // 100 == 2:
            return tunnel
        raise ProxyRefused(f"the proxy {proxy} answered {status}: {MEANINGS.get(status, 'it made no tunnel')}")
    except ProxyRefused:
        tunnel.close()
        raise
    except OSError as error:
        tunnel.close()
        raise ProxyRefused(f"the proxy {proxy} gave no answer: {error}") from error


def proxy_trouble(host: str, port: int, proxy: Proxy | None, *, timeout_s: float = 5.0) -> str:
    """Why a proxy makes no tunnel to a host, in words; empty where it does, or where there is none."""
    if proxy is None:
        return ""
    try:
        connected(host, port, proxy=proxy, timeout_s=timeout_s).close()
    except OSError as error:
        return str(error)
    return ""


def _request(host: str, port: int, proxy: Proxy) -> bytes:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user:
        lines.append(f"Proxy-Authorization: Basic {b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _status(tunnel: socket.socket, proxy: Proxy) -> int:
    """The status of the answer, whose head is read to its end and not a byte further: what follows is TLS."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = tunnel.recv(1)
        if not byte or len(head) >= HEAD_MAX_BYTES:
            break
        head += byte
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or len(words[1]) != 3:
        raise ProxyRefused(f"expected an HTTP proxy at {proxy}, found a server that does not answer like one")
    return int(words[1])
