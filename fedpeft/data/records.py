"""Examples as they were read: plain rows, each of which knows the file and line that it came from.

``Records`` is what every loader returns and every later step takes. It is immutable and ordered; subsets
are made with ``select``, so a complaint about one client's held-out row still names the user's file. Rows read
from files lie packed (``fedpeft.data.packed``) and become dictionaries as they are looked at.
"""

from abc import abstractmethod
from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, overload

import numpy as np
import numpy.typing as npt

from fedpeft.errors import DataInvalid, Problem
from fedpeft.terminal import counted

__all__ = [
    "BATCH_ROWS",
    "MAX_PROBLEMS",
    "MISSING",
    "WINDOW",
    "Batch",
    "Numbers",
    "ProblemLog",
    "Record",
    "Records",
    "Subsettable",
    "Table",
    "Texts",
]

WINDOW = 512
"""Values that ``Records.windows`` gives at a time."""

MAX_PROBLEMS = 20
"""A refusal lists this many problems and counts the rest: enough to see the pattern, short enough to read."""

Record = Mapping[str, object]
"""One example: column name -> value as the file had it."""


BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts of one column, one behind the other, without an object for each.

    Args:
        content: all of them in UTF-8.
        sizes: bytes of each, shape (n,).
    """

    content: bytes
    sizes: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for size in self.sizes.tolist():
            yield self.content[begin : begin + size].decode("utf-8")
            begin += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows that follow each other in a file, by column.

    Args:
        lines: each row's number in the file.
        columns: name -> a value for each row; ``MISSING`` where a row lacks it.
    """

    lines: Sequence[int] | npt.NDArray[np.intp]
    columns: Mapping[str, Sequence[object] | Texts]


MISSING: Final = object()
"""Stands for a column that a row does not have, which is not the same as null."""

Item_co = TypeVar("Item_co", covariant=True)
Name = TypeVar("Name", bound=Hashable)


class Numbers(dict[Name, int]):
    """A number for each name, from 0 in the order in which names are first asked for."""

    def __missing__(self, name: Name) -> int:
        self[name] = number = len(self)
        return number


class Subsettable(Sequence[Item_co]):
    """A sequence that makes its own subsets, without unpacking an item for that."""

    @abstractmethod
    def select(self, indices: Sequence[int] | npt.NDArray[np.intp]) -> Sequence[Item_co]:
        """The items at ``indices``, in that order."""


class Table(Subsettable[Record]):
    """Rows that know their columns without being unpacked."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Every column that at least one row has."""

    @abstractmethod
    def values(self, name: str) -> Iterator[object]:
        """One column's values in order; None where a row lacks it."""

    @abstractmethod
    def windows(self, name: str) -> Iterator[list[object]]:
        """As ``values``, some hundreds at a time: of all columns the same number at once."""


@dataclass(frozen=True, slots=True)
class Records(Sequence[Record]):
    """An ordered, immutable list of examples.

    Args:
        rows: the examples.
        origins: for each row, where it came from, e.g. ``notes.jsonl:12``; as long as ``rows``.

    Example:
        >>> records = Records.of([{"text": "a"}, {"text": "b"}], name="demo")
        >>> records[1], records.origins[1]
        ({'text': 'b'}, 'demo:2')
    """

    rows: Sequence[Record]
    origins: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.origins):
            raise ValueError(f"Expected one origin a row, found {len(self.rows)} rows and {len(self.origins)} origins.")

    @classmethod
    def of(cls, rows: Iterable[Record], *, name: str = "records") -> "Records":
        """Rows made in memory, numbered from 1 under ``name``."""
        kept = tuple(rows)
        return cls(kept, tuple(f"{name}:{number}" for number in range(1, len(kept) + 1)))

    def select(self, indices: Iterable[int] | npt.NDArray[np.intp]) -> "Records":
        """The rows at ``indices``, in that order."""
        chosen = indices if isinstance(indices, Sequence | np.ndarray) else array("Q", indices)
        return Records(_chosen(self.rows, chosen), _chosen(self.origins, chosen))

    def columns(self) -> tuple[str, ...]:
        """Every column that at least one row has, in order of first appearance."""
        if isinstance(self.rows, Table):
            return self.rows.names()
        return tuple(dict.fromkeys(column for row in self.rows for column in row))

    def values(self, name: str) -> Iterator[object]:
        """One column's values in order; None where a row lacks it."""
        if isinstance(self.rows, Table):
            return self.rows.values(name)
        return (row.get(name) for row in self.rows)

    def windows(self, name: str) -> Iterator[list[object]]:
        """As ``values``, some hundreds at a time: of all columns the same number at once."""
        if isinstance(self.rows, Table):
            return self.rows.windows(name)
        starts = range(0, len(self.rows), WINDOW)
        return ([row.get(name) for row in self.rows[start : start + WINDOW]] for start in starts)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self.rows[index]


def _chosen(items: Sequence[Item_co], indices: Sequence[int] | npt.NDArray[np.intp]) -> Sequence[Item_co]:
    return items.select(indices) if isinstance(items, Subsettable) else tuple(items[i] for i in indices)


class ProblemLog:
    """Collects what is wrong with a data set so that the user hears all of it at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.count = 0

    def add(self, where: str, expected: str, found: str, remedy: str = "") -> None:
        """Note one problem; beyond ``MAX_PROBLEMS`` only the count grows."""
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(where=where, expected=expected, found=found, remedy=remedy))

    def raise_if_any(self, subject: str) -> None:
        """Refuse the data set if anything was noted.

        Raises:
            DataInvalid: with the first ``MAX_PROBLEMS`` problems and the number of all.
        """
        if not self.count:
            return
        first = f" (the first {MAX_PROBLEMS} follow)" if self.count > MAX_PROBLEMS else ""
        found = f"{counted(self.count, 'problem')}{first}"
        raise DataInvalid(f"Expected usable {subject}, found {found}.", problems=self.problems)
