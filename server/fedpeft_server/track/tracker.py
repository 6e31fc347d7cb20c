"""What a tracker is: the form that docs/trackers.md describes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

__all__ = ["MakeTracker", "Tracker"]


class Tracker(Protocol):
    """One tracker of one run."""

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """A round is committed: its number, from 1, and ``numbers_of`` its row."""
        ...

    def close(self) -> None:
        """The run has ended, or is interrupted."""
        ...


MakeTracker = Callable[[Path, str, Mapping[str, str]], Tracker]
"""From a folder, in which an earlier start of the run may have left files, the run's id, and its configuration (key ->
value as text)."""
