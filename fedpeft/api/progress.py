"""What a program's user sees of a run: nothing, or one bar in a terminal or notebook."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from fedpeft.errors import ConfigInvalid
from fedpeft.round.events import Event, EventKind
from fedpeft.terminal import printable
from fedpeft_sim.screen import Screen

__all__ = ["NoProgress", "Progress", "TqdmScreen", "shown"]


@runtime_checkable
class Progress(Screen, Protocol):
    """A screen that also hears when loading begins and when everything is loaded."""

    def loading(self, what: str) -> None:
        """The configuration is right; data and base are loaded now."""
        ...

    def clients(self, methods: Mapping[str, str], rounds: int) -> None:
        """Client name -> what it trains, and how many rounds there will be."""
        ...


class NoProgress:
    """Shows nothing."""

    def loading(self, what: str) -> None:
        """See ``Progress``."""

    def clients(self, methods: Mapping[str, str], rounds: int) -> None:
        """See ``Progress``."""

    def observe(self, event: Event) -> None:
        """See ``Screen``."""

    def note(self, text: str) -> None:
        """See ``Screen``."""

    def hint(self, text: str) -> None:
        """See ``Screen``."""

    def working(self, what: str, done: int, total: int) -> None:
        """See ``Screen``."""


class TqdmScreen:
    """One bar over the rounds (``tqdm.auto``: a widget in a notebook), with notes above it."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=None, desc="loading", unit="round")

    def loading(self, what: str) -> None:
        """See ``Progress``."""
        self._bar.set_postfix_str(what)

    def clients(self, methods: Mapping[str, str], rounds: int) -> None:
        """See ``Progress``."""
        self._bar.reset(total=rounds)
        self._bar.set_description(f"{len(methods)} clients")

    def observe(self, event: Event) -> None:
        """See ``Screen``."""
        match event.kind:
            case EventKind.COMMITTED:
                self._bar.update(min(event.round_id, self._bar.total or event.round_id) - self._bar.n)
                self._bar.set_postfix_str(printable(event.detail))
            case EventKind.FAILED:
                self.note(f"round {event.round_id}: {event.device} failed: {event.detail}")
            case EventKind.ABORTED | EventKind.BURNT:
                self.note(f"round {event.round_id} {event.kind.value}: {event.detail}")
            case _:
                pass

    def note(self, text: str) -> None:
        """See ``Screen``."""
        self._bar.write(printable(text))

    def hint(self, text: str) -> None:
        """See ``Screen``."""
        self.note(text)

    def working(self, what: str, done: int, total: int) -> None:
        """See ``Screen``."""
        self._bar.set_postfix_str(f"{what}: {done} of {total}", refresh=False)
        self._bar.update(0)  # draws ten times a second at most

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


@contextmanager
def shown(progress: bool | Progress) -> Iterator[Progress]:
    """The screen that ``progress`` asks for: none, a bar, or the caller's own."""
    if not isinstance(progress, bool | Progress):
        raise ConfigInvalid(f"Expected True, False or a Progress as progress, found {progress!r:.40}.")
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield NoProgress()
    else:
        bar = TqdmScreen()
        try:
            yield bar
        finally:
            bar.close()
