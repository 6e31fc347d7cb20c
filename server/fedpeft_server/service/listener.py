"""Listeners: ports taken before anything starts, and servers on threads of their own."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from fedpeft.errors import ResourceMissing
from fedpeft_server.service.connection_limits import ConnectionLimiter, ConnectionTimeouts
from fedpeft_server.service.crowd import Crowd
from fedpeft_server.service.http_connection import LimitedProtocol

__all__ = ["Listener", "take_port"]

KEEP_ALIVE_S = 75
"""An unused connection of a device; ``fedpeft.flower.fleet`` lets it go a little before."""


def take_port(host: str, port: int, what: str) -> socket.socket:
    """The port, bound and listening.

    Raises:
        ResourceMissing: it is taken; says by whom, if this machine tells.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(512)
    except OSError as error:
        taken.close()
        raise ResourceMissing(
            f"Expected port {port} of {host} for the {what}, found {error.strerror or error}{_holder(port)}; stop it "
            "or change the port in coordinator.json."
        ) from error
    return taken


class Listener:
    """An application served from a thread; stop it.

    Args:
        app: ASGI.
        taken: from ``take_port``; None: ``take`` brings its connections.
        certificate, key: PEM files for TLS; None: plain HTTP, for loopback only.
        timeouts: with connections that say nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        taken: socket.socket | None,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        timeouts: ConnectionTimeouts | None = None,
    ) -> None:
        timeouts = timeouts or ConnectionTimeouts()
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # no line for what a stranger does wrong
        config = uvicorn.Config(
            app,
            interface="asgi3",  # uvicorn's guess takes a method for ASGI 2
            http=type("Limited", (LimitedProtocol,), _lists(timeouts)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nobody says on behalf of whom they come: rates are by address
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
            ssl_certfile=None if certificate is None else str(certificate),
            ssl_keyfile=None if key is None else str(key),
        )
        self._files = None if certificate is None or key is None else (certificate, key)
        self._server = _Server(config, timeouts)
        self._taken = taken
        name = "handed" if taken is None else taken.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=f"port-{name}", daemon=True)

    def start(self) -> None:
        """Returns once it answers.

        Raises:
            ResourceMissing: it could not start.
        """
        self._thread.start()
        pause = threading.Event()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ResourceMissing("Expected a listener, found that its thread ended; the log says why.")
            pause.wait(0.01)

    def take(self, connection: socket.socket) -> None:
        """One that another listener accepted, unread; from any thread."""
        self._server.take(connection)

    def reload(self) -> None:
        """Show the certificate that its file holds now, from the next handshake on."""
        trust = self._server.config.ssl
        if trust is not None and self._files is not None:
            trust.load_cert_chain(*self._files)

    def stop(self) -> None:
        """Take no more connections, finish what is being answered, close."""
        self._server.should_exit = True
        self._thread.join(8.0)

    def _run(self) -> None:
        self._server.run(sockets=[] if self._taken is None else [self._taken])


def _lists(timeouts: ConnectionTimeouts) -> dict[str, object]:
    """A listener's own connections, of every kind that ``LimitedProtocol`` tells apart, and their limits."""
    unheard: Crowd[LimitedProtocol] = Crowd(timeouts.silent)
    return {"unheard": unheard, "kept": {}, "owned": {}, "ending": {}, "timeouts": timeouts}


class _Server(uvicorn.Server):
    """uvicorn behind a ``ConnectionLimiter`` in place of the event loop's own server."""

    def __init__(self, config: uvicorn.Config, timeouts: ConnectionTimeouts) -> None:
        super().__init__(config)
        self._timeouts = timeouts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self._loop = asyncio.get_running_loop()
        self.servers = [
            ConnectionLimiter(one, self._protocol, trust=self.config.ssl, timeouts=self._timeouts)  # type: ignore[misc]
            for one in (sockets or (None,))
        ]
        self.started = True

    def take(self, connection: socket.socket) -> None:
        """See ``Listener.take``."""
        limiter = cast("ConnectionLimiter", self.servers[0])
        try:
            self._loop.call_soon_threadsafe(limiter.take, connection)
        except RuntimeError:  # it has ended
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _holder(port: int) -> str:
    """``, held by process 17 (name)`` where /proc tells."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                entry = line.split()
                if entry[3] == "0A" and int(entry[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{entry[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    return f", held by process {process.name} ({name})"
    return ""
