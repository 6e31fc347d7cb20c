"""A run's trackers. What fails in one of them is noted, and neither the run nor the other trackers end for it.

metrics.jsonl is the truth: when a run goes on, each tracker begins anew with every round that is committed.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, cast

from fedpeft.config.model import RunConfig
from fedpeft.config.resolved import flat
from fedpeft.config.track import OWN_TRACKERS
from fedpeft.errors import ResourceMissing, said_by
from fedpeft.plugins import plugins
from fedpeft_server.run.committing import AfterRound, go_on
from fedpeft_server.run.records import RoundMetrics
from fedpeft_server.run.run_directory import RunDirectory
from fedpeft_server.track.tracker import MakeTracker, Tracker

__all__ = ["Tracking", "expect_trackers"]

NUMBERS = ("loss", "accuracy", "train_loss", "devices_survived", "bytes_up", "bytes_down", "seconds")
"""Fields of a row that are numbers of the whole round; the task's further metrics go beside them by their names."""


def numbers_of(row: RoundMetrics) -> dict[str, float]:
    """The numbers of a row; what was not measured is left out."""
    own = {name: value for name in NUMBERS if (value := getattr(row, name)) is not None}
    return own | {name: value for name, value in row.metrics.items() if name not in own}


def expect_trackers(names: Sequence[str]) -> None:
    """Refuses a run before it begins where a tracker's package is missing.

    Raises:
        ResourceMissing: names it.
    """
    for name in names:
        if name in OWN_TRACKERS and importlib.util.find_spec(name) is None:
            raise ResourceMissing(
                f"Expected the package {name} for track.to, found none; pip install 'fedpeft[{name}]'."
            )


class Tracking:
    """All trackers of a run; use it in a ``with``.

    Args:
        config: names them.
        run: its rows are told at once; its folder ``track`` is for the trackers' files.
        note: shows a line.
    """

    def __init__(self, config: RunConfig, run: RunDirectory, note: Callable[[str], None]) -> None:
        self._run, self._note = run, note
        self._trackers: dict[str, Tracker] = {}
        for name in config.track.to:
            with self._surviving(name):
                if name not in OWN_TRACKERS:
                    run.record("track.plugin", detail={"tracker": name, "source": plugins("tracker")[name].source})
                self._trackers[name] = _made(name, run.path / "track" / name, run.manifest.run_id, config)
                for row in run.rounds:
                    self._trackers[name].round(row.round, numbers_of(row))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.close()

    def then(self, after: AfterRound = go_on) -> AfterRound:
        """What a federation calls after each round: every tracker is told, then ``after``."""

        def told(row: RoundMetrics) -> str:
            for name, tracker in list(self._trackers.items()):
                with self._surviving(name):
                    tracker.round(row.round, numbers_of(row))
            return after(row)

        return told

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """A block in which others' code, or others' servers, may fail: then this tracker is told no more."""
        try:
            yield
        except Exception as error:
            if failed := self._trackers.pop(name, None):
                with suppress(Exception):  # what it holds may still be freed
                    failed.close()
            why = f"{type(error).__name__}: {said_by(error)}"
            self._run.record("track.failed", detail={"tracker": name, "error": why})
            self._note(f"the tracker {name} failed and is told no more: {why}")


def _made(name: str, folder: Path, run_id: str, config: RunConfig) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    facts = flat(config.model_dump(mode="json"))
    if name in OWN_TRACKERS:  # each loads its library
        from fedpeft_server.track.backends import MAKERS

        return MAKERS[name](folder, run_id, facts)
    return cast("MakeTracker", plugins("tracker")[name].entry.load())(folder, run_id, facts)
