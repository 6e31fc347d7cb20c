"""Ports of the gRPC service: bound with TLS, a certificate that is read anew at each handshake, behind relays."""

import asyncio
import logging
import socket
from collections.abc import Callable

import grpc
from grpc import aio

from fedpeft.deployment import rpc
from fedpeft.deployment.client_hello import Way
from fedpeft.errors import ResourceMissing
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.service.counted_relay import ENROL_LIMITS, SERVICE_LIMITS, CountedRelay, RelayLimits
from fedpeft_server.service.grpc_calls import Call, address, client_certificate, port
from fedpeft_server.service.listener import take_port
from fedpeft_server.service.one_port import OnePort

__all__ = ["PublicPorts", "server_credentials"]

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


def _bind_port(server: aio.Server, credentials: grpc.ServerCredentials) -> int:
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


class PublicPorts:
    """The ports of the gRPC service, or the one port of everything; lives in the event loop that opens them.

    A server for each, since limits of connections are a server's. Whoever comes is counted before gRPC sees them.

    Args:
        home: initialised.
        handlers: of every method.
        gateway: takes the connections of the gateway where there is one port.
    """

    def __init__(
        self, home: CoordinatorHome, handlers: grpc.GenericRpcHandler, *, gateway: Callable[[socket.socket], None]
    ) -> None:
        self._home, self._handlers, self._gateway = home, handlers, gateway
        self._servers: list[aio.Server] = []
        self._enrolment: CountedRelay | None = None
        self._service: CountedRelay | None = None
        self._one_port: OnePort | None = None

    async def open(self, enrolled: int) -> None:
        """Returns once connections are taken.

        Args:
            enrolled: devices now.

        Raises:
            ResourceMissing: a port is taken, or TLS could not be set up.
        """
        settings, authority = self._home.settings(), self._home.ca_certificate.read_bytes()
        where = settings.public_ports()
        self._enrolment = enrolment = await self._serve(where.get("enrol"), rpc.ENROL_OPTIONS, None, ENROL_LIMITS)
        options = rpc.service_options(enrolled)
        self._service = service = await self._serve(where.get("service"), options, authority, SERVICE_LIMITS)
        if settings.one_port:
            ways = {Way.FLEET: self._gateway, Way.SERVICE: service.take, Way.ENROL: enrolment.take}
            self._one_port = OnePort(take_port(settings.bind, settings.fleet_port, "coordinator"), ways)

    async def close(self) -> None:
        """Ends open calls after a grace period; the ports are free then."""
        if self._one_port is not None:
            await self._one_port.stop()
        await asyncio.gather(*(relay.stop() for relay in (self._enrolment, self._service) if relay is not None))
        await asyncio.gather(*(server.stop(1.0) for server in self._servers))

    def origin(self, call: Call) -> str:
        """The address of whoever calls, behind the relay."""
        relay = self._relay(call)
        return (relay.origin(port(call)) if relay is not None else "") or address(call)

    def met(self, call: Call, device: str) -> None:
        """Whoever calls has shown to be this device."""
        if (relay := self._relay(call)) is not None:
            relay.belongs_to(port(call), device)

    def _relay(self, call: Call) -> CountedRelay | None:
        """Through which a call came: the system gives the port of one relay's connection to one of the other, too."""
        return self._enrolment if client_certificate(call) is None else self._service

    async def _serve(
        self, public: int | None, options: tuple[tuple[str, int], ...], authority: bytes | None, limits: RelayLimits
    ) -> CountedRelay:
        """A server and its relay.

        Args:
            public: its port; None: it has none of its own.
            options: of gRPC.
            authority: whose certificates a device must show; None: none.
            limits: of the relay.
        """
        taken = None if public is None else take_port(self._home.settings().bind, public, "gRPC service")
        server = aio.server(options=options)
        server.add_generic_rpc_handlers((self._handlers,))
        relay = CountedRelay(taken, _bind_port(server, server_credentials(self._home, authority)), limits)
        self._servers.append(server)
        await server.start()
        await relay.start()
        return relay
