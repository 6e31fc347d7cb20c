"""What a program hears of a run: one ``RoundResult`` a round, and how it ends the run."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedpeft.errors import ConfigInvalid, FedpeftError, RunFailed, said_by
from fedpeft_server.run.records import RoundMetrics

__all__ = ["Callback", "Callbacks", "RoundResult", "StopRun", "after_rounds", "expect_callbacks"]


class StopRun(Exception):
    """Raised by a callback: the run ends after this round, as finished.

    Args:
        reason: for the records.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One committed round.

    Args:
        run: the run directory.
        round: from 1; ``rounds + 1`` is the evaluation of the last state.
        rounds: how many the run trains at most.
        loss: mean held-out loss of the state that the round began with; None: nothing was evaluated.
        accuracy: share of right answers of that state, 0..1; of tokens for a language model.
        train_loss: mean over the examples that devices trained on; None: they did not train.
        devices: how many are in the sum.
        invited: how many were asked.
        bytes_up, bytes_down: from and to all devices.
        seconds: wall time.
        burnt: why the round has no sum; empty: it has one.
    """

    run: Path
    round: int
    rounds: int
    loss: float | None
    accuracy: float | None
    train_loss: float | None
    devices: int
    invited: int
    bytes_up: int
    bytes_down: int
    seconds: float
    burnt: str = ""

    @property
    def final(self) -> bool:
        """Whether this is the last evaluation, in which nobody trains."""
        return self.round > self.rounds

    @property
    def perplexity(self) -> float | None:
        """exp(loss), for a language model."""
        return None if self.loss is None else math.exp(min(self.loss, 700.0))

    @classmethod
    def of(cls, row: RoundMetrics, *, run: Path, rounds: int) -> "RoundResult":
        """From a row of metrics.jsonl."""
        return cls(
            run=run,
            round=row.round,
            rounds=rounds,
            loss=row.loss,
            accuracy=row.accuracy,
            train_loss=row.train_loss,
            devices=row.devices_survived,
            invited=row.devices_invited,
            bytes_up=row.bytes_up,
            bytes_down=row.bytes_down,
            seconds=row.seconds,
            burnt=row.burnt,
        )


@runtime_checkable
class Callback(Protocol):
    """Something that hears of each round. A plain function that takes a ``RoundResult`` does, too."""

    def on_round(self, result: RoundResult) -> object:
        """A round is committed; raise ``StopRun`` to end the run here. What is returned is not looked at."""
        ...


Callbacks = Sequence[Callback | Callable[[RoundResult], Any]]


def expect_callbacks(callbacks: Callbacks) -> None:
    """Before anything runs.

    Raises:
        ConfigInvalid: it is no list, or one of them could not be called after a round.
    """
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise ConfigInvalid(f"Expected callbacks as a list, [f], found {callbacks!r:.60}.")
    for one in callbacks:
        if isinstance(one, type):
            raise ConfigInvalid(f"Expected a callback, found the class {one.__name__}; make one: {one.__name__}().")
        if not isinstance(one, Callback) and not callable(one):
            raise ConfigInvalid(f"Expected a function or an object with on_round as a callback, found {one!r:.40}.")
        called = one.on_round if isinstance(one, Callback) else one
        if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None)):  # noqa: B004
            raise ConfigInvalid(
                f"Expected a plain function as a callback, found the async one {one!r:.60}; nothing awaits it."
            )


def after_rounds(callbacks: Callbacks, *, run: Path, rounds: int) -> Callable[[RoundMetrics], str]:
    """All callbacks as what a federation calls after each round.

    Raises:
        RunFailed: when called, from whatever else than ``StopRun`` a callback raised.
    """

    def tell(row: RoundMetrics) -> str:
        result, why = RoundResult.of(row, run=run, rounds=rounds), ""
        for callback in callbacks:
            try:
                callback.on_round(result) if isinstance(callback, Callback) else callback(result)
            except StopRun as stop:
                why = why or str(stop) or "a callback ended the run"
            except FedpeftError:
                raise
            except Exception as error:
                raise RunFailed(
                    f"A callback failed after round {row.round}: {type(error).__name__}: {said_by(error)}. Everything "
                    "up to that round is committed."
                ) from error
        return why

    return tell
