"""What a person sees while a run goes on: a live view on a terminal, one plain line a round elsewhere.

The view is at the bottom and fits the terminal (``fedpeft_sim.live_view``); rounds that ended are plain lines above
it, and scroll. It is drawn four times a second, however many events there are. Hints come last, when the view is gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedpeft.clock import Clock, SystemClock
from fedpeft.interrupts import undisturbed
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft.terminal import printable, span
from fedpeft_sim.live_view import SAID, ClientLine, LiveView, Standing, lines_of
from fedpeft_sim.remaining import Remaining

__all__ = ["LiveScreen"]

DOING = {
    Stage.PROFILE: "introducing itself",
    Stage.FIT: "training",
    Stage.SHARE: "sharing keys",
    Stage.MASK: "masking",
    Stage.CONSIST: "agreeing",
    Stage.REVEAL: "unmasking",
}
REDRAWS_PER_S = 4


class LiveScreen:
    """Shows events as they come. Use it in a ``with``.

    Args:
        console: where to.
        quiet: no view and no progress; what failed is still said.
        clock: how long rounds take, and so how long the rest will.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Clock | None = None) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock or SystemClock()
        self._begun_s = self._clock.monotonic_s()
        self._rounds, self._methods = 0, dict[str, str]()
        self._remaining = Remaining(0)
        self._left_s: float | None = None
        self._lines = dict[str, ClientLine]()
        self._title, self._done = "starting", 0
        self._hints: list[str] = []
        self._live: Live | None = None
        self._last_shown: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def loading(self, what: str) -> None:
        """Say what is loaded; the view spins until the clients are known."""
        if not self._quiet:
            self.note(what)
            self._title, self._rounds, self._lines = "loading", 0, {}
            self._start()

    def clients(self, methods: Mapping[str, str], rounds: int) -> None:
        """Begin the rounds.

        Args:
            methods: client name -> what it trains.
            rounds: how many there will be.
        """
        self._rounds, self._methods = rounds, dict(methods)
        self._remaining, self._left_s, self._done = Remaining(rounds), None, 0
        self._lines = dict.fromkeys(methods, ClientLine())
        if not self._quiet:
            self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            if self._live:
                self._live.stop()
                self._live = None
            for hint in self._hints:
                self.note(hint)
            self._hints.clear()

    def note(self, text: str) -> None:
        """One line, above the view; what a device or a coordinator said is written out."""
        self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def hint(self, text: str) -> None:
        """One line that is said last."""
        self._hints.append(text)

    def working(self, what: str, done: int, total: int) -> None:
        """Progress of a long job that is no round: each quarter of it on a plain output."""
        if self._live:
            self._title = f"{what}: {done} of {total}"
            return
        if self._quiet:
            return
        quarter = 4 * done // max(total, 1)
        if self._last_shown.get(what, 0) < quarter:
            self._last_shown[what] = quarter
            self.note(f"{what}: {done} of {total}")

    def observe(self, event: Event) -> None:
        """Take one event of the federation."""
        self._update(event)
        number = "final evaluation" if event.round_id > self._rounds else f"round {event.round_id}/{self._rounds}"
        match event.kind:
            case EventKind.ROUND_STARTED:
                self._lines = dict.fromkeys(self._lines, ClientLine())
                self._title = f"{number}: {event.detail}"
            case EventKind.FAILED:
                self.note(f"{number}: {event.device} failed: {event.detail}")
            case EventKind.ABORTED | EventKind.BURNT:
                self.note(f"{number} {event.kind.value}: {event.detail}")
            case EventKind.COMMITTED:
                self._left_s = self._remaining.ended(event.round_id, self._clock.monotonic_s())
                self._done = max(self._done, min(event.round_id, self._rounds))
                self._title = f"{number} committed"
                if not self._quiet:
                    left = (
                        "" if self._left_s is None or self._live else f"; about {span(self._left_s, roughly=True)} left"
                    )
                    self.note(f"{number} committed: {event.detail}{left}")
            case _:
                pass

    def _update(self, event: Event) -> None:
        line = self._lines.get(event.device)
        if line is None or event.stage is None:
            return
        match event.kind:
            case EventKind.ASKED:
                line = replace(line, standing=Standing.BUSY, state=DOING[event.stage])
            case EventKind.FAILED:
                line = replace(line, standing=Standing.FAILED, state=f"failed: {event.detail}")
            case EventKind.ANSWERED:
                standing = Standing.DONE if event.stage is Stage.REVEAL else Standing.WAITING
                line = replace(
                    line,
                    standing=standing,
                    state=SAID[standing],
                    bytes_up=line.bytes_up + event.bytes_up,
                    bytes_down=line.bytes_down + event.bytes_down,
                    seconds=line.seconds + event.seconds,
                )
            case _:
                pass
        self._lines[event.device] = line

    def _start(self) -> None:
        if self._live is None and self._console.is_terminal:
            # Transient: what is left on the screen are the lines of the rounds, and the hints.
            self._live = Live(
                console=self._console,
                refresh_per_second=REDRAWS_PER_S,
                transient=True,
                get_renderable=self._view,
            )
            self._live.start(refresh=True)

    def _view(self) -> Text:
        """Called by rich's own thread; the dictionaries are replaced or have a value replaced, never another key."""
        view = LiveView(
            title=self._title,
            rounds_done=self._done,
            rounds=self._rounds,
            elapsed_s=self._clock.monotonic_s() - self._begun_s,
            left_s=self._left_s,
            clients=self._lines,
            methods=self._methods,
        )
        return lines_of(view, self._console.width, self._console.height)
