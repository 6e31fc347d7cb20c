"""What a person sees while a simulation runs: a live table on a terminal, one plain line a round elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpeft.clock import Clock, SystemClock
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft.terminal import span
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


@dataclass(frozen=True, slots=True)
class _Row:
    state: str = "waiting"
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


class LiveScreen:
    """Shows events as they come. Use it in a ``with``.

    Args:
        console: where to.
        quiet: no table and no progress; what failed is still said.
        clock: how long rounds take, and so how long the rest will.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Clock | None = None) -> None:
        self._console, self._quiet, self._clock = console, quiet, clock or SystemClock()
        self._rounds, self._methods = 0, dict[str, str]()
        self._remaining = Remaining(0)
        self._rows = dict[str, _Row]()
        self._title, self._left, self._history = "starting", "", list[str]()
        self._live: Live | None = None
        self._last_shown: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def loading(self, what: str) -> None:
        """Say what is loaded; there is no table yet."""
        if not self._quiet:
            self.note(what)

    def clients(self, methods: Mapping[str, str], rounds: int) -> None:
        """Begin the table.

        Args:
            methods: client name -> what it trains.
            rounds: how many there will be.
        """
        self._rounds, self._methods = rounds, dict(methods)
        self._remaining = Remaining(rounds)
        self._rows = dict.fromkeys(methods, _Row())
        if self._console.is_terminal and methods and not self._quiet:
            self._live = Live(console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
            self._draw()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """One line, above the table."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def working(self, what: str, done: int, total: int) -> None:
        """Progress of a long job that is no round: each quarter of it on a plain output."""
        if self._live:
            self._title = f"{what}: {done} of {total}"
            self._draw()
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
                self._rows = dict.fromkeys(self._rows, _Row())
                self._title = f"{number}: {event.detail}"
            case EventKind.FAILED:
                self.note(f"{number}: {event.device} failed: {event.detail}")
            case EventKind.ABORTED | EventKind.BURNT:
                self.note(f"{number} {event.kind.value}: {event.detail}")
            case EventKind.COMMITTED:
                left = self._remaining.ended(event.round_id, self._clock.monotonic_s())
                line = f"{number} committed: {event.detail}"
                self._title = f"{number} committed"
                self._left = "" if left is None else f"; about {span(left, roughly=True)} left"
                self._history.append(line)
                if not self._live and not self._quiet:
                    self.note(line + self._left)
            case _:
                pass
        self._draw()

    def _update(self, event: Event) -> None:
        row = self._rows.get(event.device)
        if row is None or event.stage is None:
            return
        match event.kind:
            case EventKind.ASKED:
                row = replace(row, state=DOING[event.stage])
            case EventKind.FAILED:
                row = replace(row, state=f"failed: {event.detail}")
            case EventKind.ANSWERED:
                row = replace(
                    row,
                    state="done" if event.stage is Stage.REVEAL else "waiting",
                    bytes_up=row.bytes_up + event.bytes_up,
                    bytes_down=row.bytes_down + event.bytes_down,
                    seconds=row.seconds + event.seconds,
                )
            case _:
                pass
        self._rows[event.device] = row

    def _draw(self) -> None:
        if not self._live:
            return
        table = Table(title=Text(self._title + self._left), title_justify="left", title_style="bold")
        for name, justify in (("client", "left"), ("trains", "left"), ("state", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name in ("up", "down", "seconds"):
            table.add_column(name, justify="right")
        for client, row in self._rows.items():
            table.add_row(
                Text(client),  # as it is: a name is data, not markup
                Text(self._methods[client]),
                Text(row.state, overflow="ellipsis", no_wrap=True),
                f"{row.bytes_up / 1e3:.0f} kB",
                f"{row.bytes_down / 1e3:.0f} kB",
                f"{row.seconds:.1f}",
            )
        self._live.update(Group(*(Text(line, style="dim") for line in self._history[-12:]), table))
