"""The live view of a run as lines of text that fit a terminal: the bar, counts, then failed and busy clients first.

Pure: what is shown follows from the arguments. Lines are made here and not by a table of rich, which costs several
times as much for the same text: the view is drawn four times a second beside the training.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from fedpeft.terminal import counted, printable, span

__all__ = ["ClientLine", "LiveView", "Standing", "lines_of"]

MOST_CLIENTS = 12
LEFT_FREE = 4
"""Lines of the terminal that stay for the rounds that ended, above the view, and for the cursor."""
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAMES_PER_S = 4


class Standing(IntEnum):
    """Where a client stands in the round; shown in this order."""

    FAILED = 0
    BUSY = 1
    WAITING = 2
    DONE = 3
    NOT_ASKED = 4


SAID = {
    Standing.FAILED: "failed",
    Standing.BUSY: "busy",
    Standing.WAITING: "waiting for others",
    Standing.DONE: "done",
    Standing.NOT_ASKED: "not asked yet",
}


@dataclass(frozen=True, slots=True)
class ClientLine:
    """One client in the running round.

    Args:
        standing: where it stands.
        state: the same in words, with the stage or the cause.
        bytes_up: what it sent in this round.
        bytes_down: what it was sent.
        seconds: how long it worked.
    """

    standing: Standing = Standing.NOT_ASKED
    state: str = SAID[Standing.NOT_ASKED]
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveView:
    """All that is shown.

    Args:
        title: what happens now.
        rounds_done: committed.
        rounds: of the run; 0 before it is known, and then there is no bar.
        elapsed_s: since the view began.
        left_s: how long the rest will take; None before there is a round to go by.
        clients: name -> its line.
        methods: name -> what it trains.
    """

    title: str
    rounds_done: int = 0
    rounds: int = 0
    elapsed_s: float = 0.0
    left_s: float | None = None
    clients: Mapping[str, ClientLine] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)


def lines_of(view: LiveView, width: int, height: int) -> Text:
    """The view in at most ``height`` - 4 lines of ``width`` cells.

    Args:
        view: what to show.
        width: cells of the terminal's line.
        height: its lines.
    """
    width = max(width - 1, 1)  # a full line would wrap on some terminals
    frame = FRAMES[int(view.elapsed_s * FRAMES_PER_S) % len(FRAMES)]
    shown = [Text(_fitted(f"{frame} {view.title}", width), style="bold")]
    if view.rounds:
        shown.append(Text(_bar(view, width)))
    if view.clients:
        shown.append(Text(_fitted(_counts(view.clients), width)))
        room = min(MOST_CLIENTS, height - LEFT_FREE - len(shown) - 2)  # 2: the header, and how many are not shown
        if room > 0:
            shown += _table(view, room, width)
    return Text("\n").join(shown)


def _bar(view: LiveView, width: int) -> str:
    said = f"{view.rounds_done} of {counted(view.rounds, 'round')}, {span(view.elapsed_s)}"
    if view.left_s is not None:
        said += f", about {span(view.left_s, roughly=True)} left"
    cells = min(30, width - len(said) - 2)
    if cells < 5:
        return _fitted(said, width)
    full = cells * min(view.rounds_done, view.rounds) // view.rounds
    return "█" * full + "░" * (cells - full) + "  " + said


def _counts(clients: Mapping[str, ClientLine]) -> str:
    standing = Counter(line.standing for line in clients.values())
    return f"{counted(len(clients), 'client')}: " + ", ".join(
        f"{standing[each]} {SAID[each]}" for each in Standing if standing[each]
    )


def _table(view: LiveView, room: int, width: int) -> list[Text]:
    """The header, as many clients as there is room for, and how many more there are."""
    first = _first(view.clients, room)
    named = min(max([6, *(cell_len(name) for name, _ in first)]), width // 4)
    trains = [view.methods.get(name, "") for name, _ in first]
    method = min(max([6, *map(cell_len, trains)]), max(width // 4, 1))
    state = max(8, width - named - method - 31)
    figures = f"{'up':>9} {'down':>9} {'seconds':>8}"
    header = f"{_fitted('client', named)} {_fitted('trains', method)} {_fitted('state', state)} {figures}"
    rows = [Text(_fitted(header, width), "dim")]
    for (name, line), trained in zip(first, trains, strict=True):
        figures = f"{_kilobytes(line.bytes_up)} {_kilobytes(line.bytes_down)} {line.seconds:8.1f}"
        said = f"{_fitted(name, named)} {_fitted(trained, method)} {_fitted(line.state, state)} {figures}"
        rows.append(Text(_fitted(said, width), "red" if line.standing is Standing.FAILED else ""))
    if len(view.clients) > room:
        rows.append(Text(_fitted(f"and {len(view.clients) - room} more", width), "dim"))
    return rows


def _first(clients: Mapping[str, ClientLine], room: int) -> list[tuple[str, ClientLine]]:
    """Failed ones, then busy ones, then the others; many failed ones get half the room, so that the work is seen."""
    ordered = sorted(clients.items(), key=lambda item: item[1].standing)
    failed = sum(line.standing is Standing.FAILED for _, line in ordered)
    busy = sum(line.standing is Standing.BUSY for _, line in ordered)
    kept = min(failed, max(room - room // 2, room - busy))
    return (ordered[:kept] + ordered[failed:])[:room]


def _kilobytes(size: int) -> str:
    return f"{size / 1e3:6.0f} kB"


def _fitted(text: str, width: int) -> str:
    """Exactly ``width`` cells, with an ellipsis where something is cut; never a control character."""
    safe = text if text.isascii() and text.isprintable() else printable(text)
    return set_cell_size(safe, width - 1) + "…" if cell_len(safe) > width else set_cell_size(safe, width)
