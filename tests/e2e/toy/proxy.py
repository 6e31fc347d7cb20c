"""A network between a device and its coordinator that can be made bad while they talk.

Bytes of TLS pass through as they are. What goes wrong (``FaultProxy.trouble``) applies to bytes and connections from
then on:

- ``cut``: open connections end, new ones end at once;
- ``delay``: every piece waits;
- ``deaf``: the coordinator hears the device, and what it answers is lost;
- ``truncate``: the first bytes of an answer arrive, then the connection ends;
- ``duplicate``: the device's bytes arrive twice;
- ``corrupt``: a bit of every answer is flipped.
"""

import asyncio
import threading
from contextlib import suppress
from typing import Literal

Trouble = Literal["none", "cut", "delay", "deaf", "truncate", "duplicate", "corrupt"]
DELAY_S = 0.05
TRUNCATED_AT = 200


class FaultProxy:
    """Listens on ``port`` of loopback for as long as this process lives; threads may change ``trouble``.

    Args:
        target: the port that it stands before.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._trouble: Trouble = "none"
        self._open: set[asyncio.StreamWriter] = set()
        self.troubled = 0
        self.port = 0
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait(10)

    @property
    def trouble(self) -> Trouble:
        """What goes wrong now."""
        return self._trouble

    @trouble.setter
    def trouble(self, trouble: Trouble) -> None:
        self._trouble = trouble
        if trouble == "cut":
            self._loop.call_soon_threadsafe(self._hang_up)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()

    def _hang_up(self) -> None:
        for writer in self._open:
            writer.close()

    async def _serve(self, device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        if self._trouble == "cut":
            self.troubled += 1
            to_device.close()
            return
        coordinator, to_coordinator = await asyncio.open_connection("127.0.0.1", self._target)
        ends = {to_device, to_coordinator}
        self._open |= ends
        with suppress(OSError):
            await asyncio.gather(
                self._pass(device, to_coordinator, answers=False), self._pass(coordinator, to_device, answers=True)
            )
        self._open -= ends
        for writer in ends:
            writer.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
        """Bytes of one direction until its end; then the other direction ends as well."""
        try:
            while piece := await source.read(2**16):
                trouble = self._trouble
                self.troubled += trouble != "none"
                if trouble == "delay":
                    await asyncio.sleep(DELAY_S)
                if answers and trouble == "deaf":
                    continue
                if answers and trouble == "corrupt":
                    piece = piece[:-1] + bytes([piece[-1] ^ 1])
                if not answers and trouble == "duplicate":
                    piece *= 2
                if answers and trouble == "truncate":
                    target.write(piece[:TRUNCATED_AT])
                    await target.drain()
                    return
                target.write(piece)
                await target.drain()
        finally:
            target.close()
