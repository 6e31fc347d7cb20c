"""What a key of run.toml may be in a sweep: a range of numbers, or values to choose from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.errors import ConfigInvalid

__all__ = ["Range", "Space", "space_of"]


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two, both included: whole ones if both are.

    Args:
        low: the least.
        high: the largest, above ``low``.
        log: drawn evenly by their logarithm; ``low`` is above 0 then.

    Raises:
        ConfigInvalid: there is nothing between them.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigInvalid(f"Expected a range from a number to a larger one, found {self.low} to {self.high}.")
        if self.log and self.low <= 0:
            raise ConfigInvalid(f"Expected a range by logarithm that begins above 0, found {self.low}.")


Space = Range | Sequence[object]
"""What a key may be: a range, or one of these values."""


def space_of(text: str) -> Space:
    """What ``--vary KEY=...`` says of a key.

    Args:
        text: ``low..high``, ``log:low..high``, or values with commas between them.

    Raises:
        ConfigInvalid: it is neither.

    Example:
        >>> space_of("log:1e-4..0.1"), space_of("4,8,16"), space_of("adamw,sgd")
        (Range(low=0.0001, high=0.1, log=True), (4, 8, 16), ('adamw', 'sgd'))
    """
    if ".." in text:
        log, ends = text.startswith("log:"), text.removeprefix("log:").split("..")
        try:
            low, high = (_number(end) for end in ends)
        except ValueError as error:
            raise ConfigInvalid(f"Expected low..high or log:low..high with two numbers, found {text!r}.") from error
        return Range(low, high, log)
    values = tuple(_value(one.strip()) for one in text.split(","))
    if len(values) < 2 or "" in values:
        raise ConfigInvalid(f"Expected two values or more with commas between them, or low..high, found {text!r}.")
    return values


def _number(text: str) -> float:
    return int(text) if text.strip().lstrip("-").isdigit() else float(text)


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    try:
        return _number(text)
    except ValueError:
        return text
