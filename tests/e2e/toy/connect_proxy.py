"""`connect_proxy.py LOG USER:PASSWORD NAME PORTS [PORT]`: an HTTP proxy with Basic authentication, tunnels to loopback.

It alone knows where NAME is, so who reaches a coordinator of that name came through here. LOG gets its port first
(PORT or a free one), then a line for every request: the status it got and its target.
"""

import asyncio
import sys
from base64 import b64encode
from contextlib import suppress
from pathlib import Path


class ConnectProxy:
    """Of one process."""

    def __init__(self, log: Path, credentials: str, name: str, ports: set[str]) -> None:
        self._log, self._name, self._ports = log, name, ports
        self._wanted = f"Basic {b64encode(credentials.encode()).decode()}" if credentials else ""

    def _tell(self, line: str) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    async def serve(self, port: int) -> None:
        """Until the process ends."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        self._tell(str(server.sockets[0].getsockname()[1]))
        await server.serve_forever()

    async def _answer(self, device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            lines = (await device.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            target = lines[0].split()[1]
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
            host, _, port = target.rpartition(":")
            status = 200 if host == self._name and port in self._ports else 403
            if self._wanted and headers.get("proxy-authorization") != self._wanted:
                status = 407
            self._tell(f"{status} {target}")
            to_device.write(f"HTTP/1.1 {status} Said\r\nProxy-Authenticate: Basic\r\n\r\n".encode())
            await to_device.drain()
            if status == 200:
                there, to_there = await asyncio.open_connection("127.0.0.1", int(port))
                await asyncio.gather(self._pass(device, to_there), self._pass(there, to_device))
        to_device.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(2**16):
                target.write(piece)
                await target.drain()
        target.close()


if __name__ == "__main__":
    log, credentials, name, ports, *port = sys.argv[1:]
    asyncio.run(ConnectProxy(Path(log), credentials, name, set(ports.split(","))).serve(int(port[0]) if port else 0))
