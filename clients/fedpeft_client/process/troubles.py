"""The device's own record of what went wrong, which nobody else hears of (``fedpeft.round.failures``).

One JSON object a line, the newest last, in a file that only its owner reads: a cause may quote an example.
"""

import contextlib
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpeft.clock import Clock
from fedpeft.directory_lock import short_turn
from fedpeft.files import PRIVATE, write_file
from fedpeft.round.failures import Trouble, log_trouble

__all__ = ["TroubleEntry", "TroubleLog"]

KEPT, LONGEST = 200, 2_000
"""Lines, and characters of a cause: a device that fails every round fills no disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleEntry:
    """One trouble.

    Args:
        at: when, UTC, ISO 8601.
        run_id, round_id, cause, trace: see ``Trouble``.
    """

    at: str
    run_id: str
    round_id: int
    cause: str
    trace: str = ""


class TroubleLog:
    """A device's troubles in a file.

    Args:
        path: in a directory that exists.
        clock: for the time of each.
        traces: whether tracebacks are kept: where the operator of all devices reads them, in a simulation.
    """

    def __init__(self, path: Path, clock: Clock, *, traces: bool = False) -> None:
        self._path, self._clock, self._traces = path, clock, traces
        self._lock = threading.Lock()

    def __call__(self, trouble: Trouble) -> None:
        """Keep it, and say it in this process's log."""
        log_trouble(trouble)
        entry = TroubleEntry(
            at=self._clock.utc().isoformat(timespec="seconds"),
            run_id=trouble.run_id,
            round_id=trouble.round_id,
            cause=trouble.cause[:LONGEST],
            trace=trouble.trace[-LONGEST:] if self._traces else "",
        )
        with self._lock, contextlib.suppress(OSError):  # a full disk is a trouble, too: it is in the log
            self._keep(entry)

    def _keep(self, entry: TroubleEntry) -> None:
        with short_turn(self._path.parent):  # both processes of a device write here
            lines = [json.dumps(asdict(one)) for one in (*self.entries()[1 - KEPT :], entry)]
            write_file(self._path, ("\n".join(lines) + "\n").encode(), mode=PRIVATE)

    def entries(self) -> tuple[TroubleEntry, ...]:
        """All that are kept, the newest last; a line that somebody changed is left out."""
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ()
        return tuple(entry for line in text.splitlines() if (entry := _entry(line)) is not None)


def _entry(line: str) -> TroubleEntry | None:
    try:
        return TroubleEntry(**json.loads(line))
    except (ValueError, TypeError):
        return None
