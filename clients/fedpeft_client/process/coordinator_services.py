"""A running device's connection to the coordinator's gRPC service: wake-ups, bases, and its certificate's renewal."""

import logging
import threading
from collections.abc import Callable

from fedpeft.base import ArtifactStore
from fedpeft.clock import Clock
from fedpeft.errors import NotEnrolled
from fedpeft_client.connection.base_cache import BaseCache
from fedpeft_client.connection.fetch_base import FetchProgress, fetch_base
from fedpeft_client.connection.grpc_client import Link, Unreachable
from fedpeft_client.connection.wakeups import WakeListener
from fedpeft_client.enrolment.membership import finish_rotation, renew_if_due
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site

__all__ = ["CoordinatorServices"]

RENEWAL_LOOK_S = 6 * 3600.0

_log = logging.getLogger(__name__)


class CoordinatorServices:
    """Implements ``Companion``.

    Args:
        home: of an enrolled device.
        clock: for the certificate's life.
        progress: told how far the fetch of a base is.

    Raises:
        ConfigInvalid: site.toml is missing or wrong.
    """

    def __init__(
        self, home: DeviceHome, clock: Clock, *, progress: Callable[[FetchProgress], None] = lambda _: None
    ) -> None:
        finish_rotation(home)
        bases_mb = Site.load(home.site).limits.bases_mb
        self._quota_bytes = None if bases_mb is None else bases_mb << 20
        self._cache = BaseCache(home.bases())
        self._home, self._clock, self._progress = home, clock, progress
        self._closed = threading.Event()
        self._listener: WakeListener | None = None
        self._renewing = threading.Thread(target=self._renew, name="renewal", daemon=True)

    @property
    def is_streaming(self) -> bool:
        """See ``Companion``."""
        return self._listener is not None and self._listener.is_open

    def fetch(self, digest: str) -> None:
        """See ``Companion``."""
        self._cache.hold(digest)
        if ArtifactStore(self._cache.path).find(digest) is not None:
            return
        _log.info("fetching base %s", digest)
        with Link.of_home(self._home) as link:
            fetch_base(
                link,
                digest,
                self._cache.path,
                quota_bytes=self._quota_bytes,
                progress=self._progress,
                pause=self._closed.wait,
            )

    def start(self, ring: Callable[[], None]) -> None:
        """See ``Companion``."""

        def ended(error: NotEnrolled) -> None:
            _log.warning("no wake-ups any more: %s", error)
            ring()  # the gate says the same, with the reason, to the next request

        self._listener = WakeListener(self._home, on_wake=ring, on_ended=ended)
        self._listener.start()
        self._renewing.start()

    def close(self) -> None:
        """See ``Companion``."""
        self._closed.set()
        if self._listener is not None:
            self._listener.stop()
        self._cache.release()

    def _renew(self) -> None:
        while True:
            try:
                if renew_if_due(self._home, self._clock):
                    _log.info("the device's certificate was renewed")
            except (NotEnrolled, Unreachable, OSError) as error:
                _log.warning("the certificate was not renewed: %s", error)
            if self._closed.wait(RENEWAL_LOOK_S):
                return
