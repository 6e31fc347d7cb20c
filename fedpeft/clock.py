"""Time as an argument: deadlines use the monotonic clock, records the calendar one."""

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the round engine may ask about time."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def utc(self) -> datetime:
        """Calendar time, timezone-aware, for records only: never for deadlines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        """Seconds since boot, roughly."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Now, in UTC."""
        return datetime.now(UTC)
