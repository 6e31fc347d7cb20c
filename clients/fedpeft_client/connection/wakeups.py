"""Hearing that a message waits: keeps the wake stream open, tells its owner, and says whether it is open now.

With the stream down the device polls as stock Flower does; with it up it need not.
"""

import contextlib
import logging
import threading
from collections.abc import Callable

from fedpeft.errors import FedpeftError, NotEnrolled
from fedpeft_client.connection.grpc_client import Link, Unreachable
from fedpeft_client.home import DeviceHome

__all__ = ["WakeListener"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class WakeListener:
    """Listens on a thread of its own from ``start`` to ``stop``.

    Args:
        home: of an enrolled device.
        on_wake: called whenever a message may wait, and after every connection; must return at once.
        on_ended: called once when the coordinator does not want this device any more, with why.
    """

    def __init__(
        self, home: DeviceHome, *, on_wake: Callable[[], None], on_ended: Callable[[NotEnrolled], None]
    ) -> None:
        self._home, self._on_wake, self._on_ended = home, on_wake, on_ended
        self._stopped, self._open = threading.Event(), threading.Event()
        self._link: Link | None = None
        self._thread = threading.Thread(target=self._listen, name="wake", daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether the stream is up: then polling is not needed."""
        return self._open.is_set()

    def start(self) -> None:
        """Begins to listen; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Hangs up and returns when the thread has ended."""
        self._stopped.set()
        if self._link is not None:
            self._link.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _listen(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            certificate = self._certificate()
            try:
                with Link.of_home(self._home) as link:
                    self._link = link
                    for _ in link.wakes():
                        if self._stopped.is_set():
                            return
                        self._open.set()
                        pause_s = _FIRST_PAUSE_S
                        self._on_wake()
            except NotEnrolled as error:
                self._open.clear()
                if certificate == self._certificate():  # else it was renewed, or the key rotated, meanwhile
                    if not self._stopped.is_set():
                        self._on_ended(error)
                    return
            except (Unreachable, FedpeftError) as error:
                _log.debug("the wake stream broke: %s", error)
            self._open.clear()
            self._stopped.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _certificate(self) -> bytes:
        with contextlib.suppress(OSError):
            return self._home.device_certificate.read_bytes()
        return b""
