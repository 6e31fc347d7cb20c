"""A clock that only moves when a test moves it."""

from datetime import UTC, datetime, timedelta

__all__ = ["FakeClock"]


class FakeClock:
    """``Clock`` for tests: begins at noon, stands still.

    Args:
        step_s: how far each question moves it; for code that polls until a deadline.
    """

    def __init__(self, *, step_s: float = 0.0) -> None:
        self._elapsed_s, self._step_s = 0.0, step_s

    def monotonic_s(self) -> float:
        """Seconds since the clock was made."""
        self._elapsed_s += self._step_s
        return self._elapsed_s

    def utc(self) -> datetime:
        """2026-11-22, noon, and what has passed since."""
        return datetime(2026, 11, 22, 12, tzinfo=UTC) + timedelta(seconds=self._elapsed_s)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._elapsed_s += seconds
