"""The server as a process: it binds, serves, takes on runs that change, and ends without leaving answers half said."""

import asyncio
import ipaddress
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import ConfigInvalid, FedpeftError, ResourceMissing
from fedpeft_client.serving.engine import Engine
from fedpeft_client.serving.registry import AdapterRegistry, Source

if TYPE_CHECKING:
    import uvicorn

__all__ = ["LOOK_S", "serve"]

_LOG = logging.getLogger(__name__)
LOOK_S = 2.0
"""Seconds between two looks at the runs' folders."""
ENDING_S = 30
"""What is computed when the server is to end may take so long."""


def serve(
    sources: Sequence[Source],
    *,
    store: Path | None,
    host: str,
    port: int,
    token: str | None,
    waiting: int,
    ready: Callable[[str], None],
) -> None:
    """Serve until the process is told to end.

    Args:
        sources: runs; names differ.
        store: where base artifacts lie.
        host: an address of this machine.
        port: 0 takes a free one.
        token: what requests must show; needed where others than this machine can ask.
        waiting: at most so many texts wait.
        ready: told the URL once requests are taken.

    Raises:
        ConfigInvalid: an address that others reach without a token, or two runs of one name.
        ResourceMissing: the extra ``serve`` is not installed, or the port is taken.
    """
    if token is None and not _is_loopback(host):
        raise ConfigInvalid(
            f"Expected a token to serve on {host}, which other machines reach; write one to a file, name it with "
            "--token-file, and put TLS in front."
        )
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise ConfigInvalid(f"Expected runs of different names, found {', '.join(names)}; write NAME=RUN.")
    try:
        import uvicorn

        from fedpeft_client.serving.http import application
    except ImportError as missing:
        raise ResourceMissing(
            f"Expected starlette and uvicorn to serve, found no {missing.name}; pip install 'fedpeft[serve]'."
        ) from missing
    registry = AdapterRegistry(store)
    for source in sources:
        registry.prepare(source)()  # no engine runs yet
    engine = Engine(registry, waiting=waiting)
    config = uvicorn.Config(
        application(engine, token=token),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=max(64, waiting),
        timeout_graceful_shutdown=ENDING_S,
        h11_max_incomplete_event_size=1 << 15,
    )
    try:
        asyncio.run(_until_told(uvicorn.Server(config), engine, registry, sources, ready))
    except SystemExit as refused:  # uvicorn's answer to a port that is taken
        raise ResourceMissing(f"Expected {host}:{port} to be free, found it taken; use --port.") from refused
    finally:
        engine.close()


async def _until_told(
    server: "uvicorn.Server",
    engine: Engine,
    registry: AdapterRegistry,
    sources: Sequence[Source],
    ready: Callable[[str], None],
) -> None:
    def end() -> None:
        server.should_exit = True

    # uvicorn would raise the signal anew when it is done: to end as told is no failure.
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, end)
    watching = asyncio.create_task(_watch(engine, registry, sources))
    serving = asyncio.create_task(server._serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        address = server.servers[0].sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        ready(f"http://{host}:{address[1]}")
    try:
        await serving
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _watch(engine: Engine, registry: AdapterRegistry, sources: Sequence[Source]) -> None:
    """Take on what a run has committed since; what cannot be read leaves the earlier state in service."""
    seen = {source.name: registry.served[source.name].version for source in sources}
    while True:
        await asyncio.sleep(LOOK_S)
        for source in sources:
            with suppress(OSError):
                version = source.version()
                if version == seen[source.name]:
                    continue
                seen[source.name] = version
                try:
                    put = await asyncio.to_thread(registry.prepare, source)
                except FedpeftError as refused:
                    _LOG.warning("%s stays as it was: %s", source.name, refused)
                    continue
                engine.call(put)
                _LOG.info("%s: took on %s", source.name, version)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
