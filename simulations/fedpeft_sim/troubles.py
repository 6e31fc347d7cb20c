"""What went wrong on virtual devices: their own records, read by whoever runs all of them.

A device says nothing of it to its coordinator (``fedpeft.round.failures``), a virtual one neither. In a simulation the
operator owns the data, so the records lie in the run directory, and what is new in them is shown and noted as events.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fedpeft.clock import SystemClock
from fedpeft.ids import RoundId
from fedpeft.terminal import printable
from fedpeft_client.process.troubles import TroubleEntry, TroubleLog
from fedpeft_server.run.run_directory import RunDirectory

__all__ = ["TroubleWatch", "trouble_log"]


def trouble_log(folder: Path, client: str) -> TroubleLog:
    """Where one virtual device keeps what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    return TroubleLog(folder / f"{client}.jsonl", SystemClock(), traces=True)


class TroubleWatch:
    """Shows what virtual devices have noted since it was last asked.

    Args:
        folder: where their records lie.
        run: gets an event ``device.trouble`` for each.
        note: shows a line.
    """

    def __init__(self, folder: Path, run: RunDirectory, note: Callable[[str], None]) -> None:
        self._folder, self._run, self._note = folder, run, note
        self._seen: Counter[str] = Counter()
        self._traces: set[str] = set()
        self._seen.update({client: len(found) for client, found in self._found().items()})  # of a run that goes on

    def look(self) -> None:
        """Show and note what is new."""
        for client, entries in self._found().items():
            new = entries[self._seen[client] :]
            self._seen[client] = len(entries)
            for entry in new:
                self._note(f"{client} in round {entry.round_id}: {entry.cause}")
                if entry.trace and entry.trace not in self._traces:  # the same on every client is shown once
                    self._traces.add(entry.trace)
                    self._note(printable(entry.trace.rstrip(), keep_lines=True))
                round_id = RoundId(entry.round_id) if entry.round_id else None
                self._run.record("device.trouble", round_id=round_id, client=client, detail={"cause": entry.cause})

    def _found(self) -> dict[str, tuple[TroubleEntry, ...]]:
        return {path.stem: TroubleLog(path, SystemClock()).entries() for path in sorted(self._folder.glob("*.jsonl"))}
