"""A sweep as a program sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.api.result import Result, open_run

__all__ = ["Sweep", "SweepTrial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTrial:
    """One trial.

    Args:
        number: from 0.
        settings: the varied keys' values.
        value: the metric of the state that the run kept; None: it failed, or measured nothing.
        run: its run directory; None: it ended before there was one.
        state: ``complete``, ``failed`` or ``running`` (in another process, or one that was killed).
    """

    number: int
    settings: Mapping[str, object]
    value: float | None
    run: Path | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep as it lies on the disk.

    Args:
        path: its folder.
        metric: what was compared.
        trials: in the order in which they were begun.
        lower_is_better: whether the least value is the best.
    """

    path: Path
    metric: str
    trials: tuple[SweepTrial, ...]
    lower_is_better: bool

    @property
    def best(self) -> SweepTrial | None:
        """The best trial; None before one is complete."""
        measured = [trial for trial in self.trials if trial.value is not None]
        sign = 1 if self.lower_is_better else -1
        return min(measured, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def result(self) -> Result | None:
        """The best trial's run."""
        return open_run(self.best.run) if self.best and self.best.run else None
