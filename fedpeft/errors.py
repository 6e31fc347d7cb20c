"""The exception tree and the exit codes.

A device's failure is a value with a reason and an aborted round is an outcome (``fedpeft.round``); these
exceptions are for what stops a command: bad input, a broken artifact, a refusal, a missing resource.
Every one of them says what was expected, what was found and what to do, and carries the exit code of
its kind (docs/design.md, section 9). An exception outside this tree is a bug: exit 70, with a traceback.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "EXIT_BUG",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_TERMINATED",
    "ApprovalPending",
    "BudgetExhausted",
    "ConfigInvalid",
    "DataInvalid",
    "DeadlineMissed",
    "FedpeftError",
    "IntegrityFailed",
    "NotEnrolled",
    "NotYet",
    "OutsideHours",
    "PolicyRefused",
    "Problem",
    "QuorumMissed",
    "ResourceMissing",
    "RunFailed",
    "SpecMismatch",
    "foreign",
    "interrupt_behind",
    "said_by",
]

EXIT_OK = 0
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with what a user gave.

    Args:
        where: the file, key or name concerned, e.g. ``run.toml: train.rounds``.
        expected: what would have been right.
        found: what was there.
        remedy: what to do about it; empty when ``expected`` already says it.
    """

    where: str
    expected: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: expected {self.expected}, found {self.found}"
        return f"{text}. {self.remedy}" if self.remedy else text


class FedpeftError(Exception):
    """Base of everything a user can cause or must hear about. ``exit_code`` is the process's answer."""

    exit_code = 1

    def __init__(self, message: str, *, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [super().__str__(), *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


class RunFailed(FedpeftError):
    """The run started and could not be finished."""

    exit_code = 1


class ConfigInvalid(FedpeftError):
    """A configuration was refused; nothing was started. Carries every problem found, not the first."""

    exit_code = 3


class DataInvalid(FedpeftError):
    """A data set was refused; nothing was started."""

    exit_code = 3


class NotEnrolled(FedpeftError):
    """The device is not enrolled here, or no longer."""

    exit_code = 4


class DeadlineMissed(FedpeftError):
    """Something waited for did not come in time."""

    exit_code = 5


class QuorumMissed(FedpeftError):
    """Too few devices took part, again and again."""

    exit_code = 5


class IntegrityFailed(FedpeftError):
    """Bytes are not what their digest says."""

    exit_code = 6


class SpecMismatch(IntegrityFailed):
    """Tensors do not have the names, shapes or dtypes that their specification says."""


class BudgetExhausted(FedpeftError):
    """The privacy budget does not allow the next release."""

    exit_code = 7


class PolicyRefused(FedpeftError):
    """The site's own policy forbids what the run asks for."""

    exit_code = 7


class NotYet(PolicyRefused):
    """The site may take part later; it may be asked again."""


class RosterMissing(FedpeftError):
    """Signed terms came without their roster, and it is not here; it can be asked for."""


class OutsideHours(NotYet):
    """The site takes part at other hours of the day."""


class ApprovalPending(NotYet):
    """The site's owner has not said yes to the run's plan."""


class ResourceMissing(FedpeftError):
    """This machine lacks disk, memory, a port or a package."""

    exit_code = 8


@contextmanager
def foreign(refusal: Callable[[str], FedpeftError]) -> Iterator[None]:
    """The door at which others' code meets a user's input: whatever it raises becomes a refusal of ours.

    pyarrow, jinja2, tokenizers and their like raise any class on input that they do not take, Rust's extensions even
    a ``BaseException``. Use it around the one call into such a library and nothing else, so that a bug of ours
    beside it stays a bug.

    Args:
        refusal: makes the error from one line that says what the library said.

    Raises:
        FedpeftError: the refusal; errors of ours, a lack of memory and signals pass as they are.
        KeyboardInterrupt: one of which the library made another error, as a library that is being imported does.

    Example:
        >>> with foreign(lambda said: DataInvalid(f"Expected a number, found {said}.")):
        ...     int("--1")
        Traceback (most recent call last):
            ...
        fedpeft.errors.DataInvalid: Expected a number, found invalid literal for int() with base 10: '--1'.
    """
    outside = sys.exception()
    try:
        yield
    except (FedpeftError, MemoryError):
        raise
    except BaseException as error:
        if interrupt := interrupt_behind(error, outside):
            raise interrupt  # noqa: B904 (it has its own place in the chain)
        if not isinstance(error, Exception) and not type(error).__module__.startswith("pyo3"):
            raise  # a signal or an exit
        raise refusal(said_by(error)) from error


def interrupt_behind(error: BaseException, outside: BaseException | None = None) -> KeyboardInterrupt | None:
    """The interrupt that this exception is, was made of, or was raised while it was handled; None if there is none.

    Args:
        outside: what was being handled before; what led to that is no part of this.
    """
    waiting: list[BaseException | None] = [error]
    seen = {id(outside)}
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, KeyboardInterrupt):
            return one
        seen.add(id(one))
        waiting += [one.__context__, one.__cause__]
    return None


def said_by(error: BaseException, *, limit: int = 200) -> str:
    """An exception's first sentence, its class where it says nothing; at most ``limit`` characters, all printable."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = " ".join(lines[:2]) if text.endswith(":") else text  # "Validation error for field 'x':", and then what it is
    text = "".join(mark if mark.isprintable() else " " for mark in text).rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."
