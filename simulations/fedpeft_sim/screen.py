"""What a simulation tells whoever watches: the protocol that every screen has."""

from typing import Protocol

from fedpeft.round.events import Event

__all__ = ["Screen"]


class Screen(Protocol):
    """What the simulation tells a person while it runs."""

    def observe(self, event: Event) -> None:
        """One transition of the federation."""
        ...

    def note(self, text: str) -> None:
        """One line."""
        ...

    def hint(self, text: str) -> None:
        """What to do now; said last, when nothing else is shown any more."""
        ...

    def working(self, what: str, done: int, total: int) -> None:
        """Progress of something long that is not a round."""
        ...
