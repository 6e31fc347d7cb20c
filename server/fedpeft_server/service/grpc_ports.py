"""Ports of the gRPC service: bound with TLS, a certificate that is read anew at each handshake."""

import logging

import grpc
from grpc import aio

from fedpeft.errors import ResourceMissing
from fedpeft_server.home import CoordinatorHome

__all__ = ["bind_port", "server_credentials"]

_log = logging.getLogger(__name__)


def server_credentials(home: CoordinatorHome, authority: bytes | None) -> grpc.ServerCredentials:
    """Of the certificate that its file holds at each handshake: it is renewed while this process runs.

    Args:
        home: whose certificate is shown.
        authority: whose certificates a device must show; None: none.

    Raises:
        ResourceMissing: the home has no certificate.
    """
    shown = b""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            certificate = home.server_certificate.read_bytes()
            if certificate == shown:
                return None
            pair = [(home.server_key.read_bytes(), certificate)]
        except OSError as error:  # the one before is still good
            _log.error("the server's certificate cannot be read: %s", error)
            return None
        shown = certificate
        return grpc.ssl_server_certificate_configuration(pair, authority)

    first = fetch()
    if first is None:
        raise ResourceMissing(f"Expected the server's certificate in {home.pki}, found none; restore it.")
    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=authority is not None)


def bind_port(server: aio.Server, credentials: grpc.ServerCredentials) -> int:
    """Has a server listen with TLS on a free port of loopback, behind its relay; returns which.

    Raises:
        ResourceMissing: there is none.
    """
    try:
        if found := int(server.add_secure_port("127.0.0.1:0", credentials)):
            return found
    except RuntimeError as error:
        raise ResourceMissing("Expected a free port on 127.0.0.1, found none.") from error
    raise ResourceMissing("Expected a free port on 127.0.0.1, found none.")
