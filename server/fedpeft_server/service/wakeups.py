"""Who is listening for "a message waits", and the bell: how the round engine reaches the wake streams.

The engine calls ``Wakeups.notify`` with the names of the devices that it has just pushed messages for; the gRPC
service (``fedpeft_server.service.grpc_service``) subscribes each device's stream. A wake-up carries no content and may
be lost: devices also poll.
"""

import threading
from collections.abc import Callable, Iterable

__all__ = ["Wakeups"]


class Wakeups:
    """Thread-safe. Bells are rung in the caller's thread, so they must not block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bells: dict[str, dict[int, Callable[[], None]]] = {}
        self._next = 0

    def notify(self, devices: Iterable[str]) -> None:
        """Tells these devices that a message waits; those that do not listen will poll."""
        with self._lock:
            bells = [bell for device in devices for bell in self._bells.get(device, {}).values()]
        for bell in bells:
            bell()

    def listening(self) -> frozenset[str]:
        """The names of the devices that have a stream open now."""
        with self._lock:
            return frozenset(self._bells)

    def subscribe(self, device: str, bell: Callable[[], None]) -> Callable[[], None]:
        """Rings ``bell`` for this device until the returned function is called."""
        with self._lock:
            self._next += 1
            number = self._next
            self._bells.setdefault(device, {})[number] = bell

        def stop() -> None:
            with self._lock:
                streams = self._bells.get(device, {})
                streams.pop(number, None)
                if not streams:
                    self._bells.pop(device, None)

        return stop
