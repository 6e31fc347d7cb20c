"""The gRPC service's shape: names of its methods, limits, and the settings of both ends of a connection.

Handlers are written by hand and take and give bytes: the messages are the wire codec's, so there is no second schema
and no code generator. The only module outside coordinator and device that imports grpc.
"""

import grpc

from fedpeft.deployment.proxy import Proxy

__all__ = [
    "ADAPTERS",
    "ADAPTER_FILE",
    "CHUNKS",
    "ENROL",
    "ENROL_OPTIONS",
    "GREET",
    "LEAVE",
    "MANIFEST",
    "MANIFEST_MAX_BYTES",
    "PIECE_BYTES",
    "RENEW",
    "REQUEST_MAX_BYTES",
    "SERVICE",
    "WAKE",
    "method_path",
    "secure_channel",
    "service_options",
]

SERVICE = "fedpeft.v1.Coordinator"
GREET, ENROL, RENEW, LEAVE = "Greet", "Enrol", "Renew", "Leave"
MANIFEST, CHUNKS, WAKE = "FetchManifest", "FetchChunks", "Wake"
ADAPTERS, ADAPTER_FILE = "ListAdapters", "FetchAdapterFile"

PIECE_BYTES = 1 << 20
"""One message of a chunk stream: a chunk of 8 MiB is eight of them."""
REQUEST_MAX_BYTES = 32 * 1024
"""No request is longer: the largest is an application with its signing request and hardware profile."""
MANIFEST_MAX_BYTES = 64 << 20
"""The manifest of a base of 8 TiB would fit."""

_KEEPALIVE_S = 20
_OPTIONS = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),  # a second coordinator on the port must fail, not share its devices
    ("grpc.max_receive_message_length", REQUEST_MAX_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_S * 500),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 16),
)
ENROL_OPTIONS = (
    *_SERVER_OPTIONS,
    ("grpc.max_allowed_incoming_connections", 96),  # with those that have not finished their handshake
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.max_connection_age_ms", 60_000),  # a device that waits for approval connects anew
    ("grpc.max_connection_age_grace_ms", 10_000),
)
"""Nobody has shown who they are there: connections are few and short."""


def service_options(enrolled: int) -> tuple[tuple[str, int], ...]:
    """Of the port behind a handshake with a device's certificate, which takes ``server_handshake_timeout_ms`` at most.

    Args:
        enrolled: devices now. Each holds a wake-up stream, so its connection is not idle, and may open another; those
            that find no place poll.
    """
    return (
        *_SERVER_OPTIONS,
        ("grpc.max_allowed_incoming_connections", max(192, 2 * enrolled + 64)),
        ("grpc.max_connection_idle_ms", 60_000),
    )


def method_path(method: str) -> str:
    """The full name of a method, as it travels."""
    return f"/{SERVICE}/{method}"


def secure_channel(
    target: str,
    *,
    authority: bytes,
    key: bytes | None = None,
    certificate: bytes | None = None,
    proxy: Proxy | None = None,
    name: str = "",
) -> grpc.Channel:
    """A TLS channel that trusts this authority and no other.

    Args:
        target: ``host:port``; the host must be in the server's certificate.
        authority: its certificate, PEM.
        key, certificate: the device's own, PEM; None before it has them.
        proxy: between here and there; None: none, whatever the environment says.
        name: asked for in the handshake, and in the server's certificate, in place of the host.
    """
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    limit = MANIFEST_MAX_BYTES + 4096
    way: tuple[str, int | str] = ("grpc.enable_http_proxy", 0)
    if proxy is not None:
        way = ("grpc.http_proxy", proxy.with_credentials())
    asked: tuple[tuple[str, str], ...] = (("grpc.ssl_target_name_override", name),) if name else ()
    options = (*_OPTIONS, ("grpc.max_receive_message_length", limit), ("grpc.enable_retries", 0), way, *asked)
    return grpc.secure_channel(target, credentials, options)
