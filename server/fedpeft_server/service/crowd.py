"""Which connection goes when there are too many: one of whoever has most of them.

Were it the oldest of all, one address that opens two thousand a second would end every handshake within 30 ms: less
than a device's first answer takes over a network. Here it ends its own.
"""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["Crowd"]

T = TypeVar("T", bound=Hashable)


class Crowd(Generic[T]):
    """Connections at once, by where they come from.

    Args:
        most: of all origins together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._origins: dict[T, str] = {}
        self._theirs: dict[str, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._origins)

    def __iter__(self) -> Iterator[T]:
        """The oldest first; a copy, so that what is iterated over may be taken out."""
        return iter(list(self._origins))

    def enter(self, one: T, origin: str) -> T | None:
        """Counts one that is new; returns which has to go for it, no longer counted: the oldest of the fullest origin.

        Args:
            one: not counted yet.
            origin: where it comes from; where many have as many, the one whose first came first is the fullest.
        """
        self._origins[one] = origin
        self._theirs.setdefault(origin, {})[one] = None
        if len(self._origins) <= self._most:
            return None
        fullest = max(self._theirs, key=lambda origin: len(self._theirs[origin]))
        oldest = next(iter(self._theirs[fullest]))
        self.leave(oldest)
        return oldest

    def leave(self, one: T) -> None:
        """Counts it no longer, if it was counted."""
        origin = self._origins.pop(one, None)
        if origin is None:
            return
        theirs = self._theirs[origin]
        del theirs[one]
        if not theirs:
            del self._theirs[origin]
