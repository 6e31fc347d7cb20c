"""Some rows of many: their numbers, and which of them are read together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedpeft.data.packed.paged import PagedNumbers, Pages
from fedpeft.data.records import WINDOW
from fedpeft.errors import DataInvalid

__all__ = ["CHOSEN_BYTES", "PIECE", "Indices", "Span", "spans_of", "subset_of"]

CHOSEN_BYTES = 2**20
"""Of the numbers of some chosen rows, as one client's are: more goes to a temporary file."""

PIECE = 2**16
"""Row numbers looked at together."""

NEAR = 32
"""Rows so far from each other are read together."""

MOST_ROWS = 2**32

Indices = Sequence[int] | npt.NDArray[np.intp]


def subset_of(chosen: Sequence[int], indices: Indices) -> Sequence[int]:
    """The numbers at ``indices``; few bytes each, beyond ``CHOSEN_BYTES`` on the disk."""
    if isinstance(chosen, range) and isinstance(indices, range) and _within(indices, len(chosen)):
        return chosen[indices.start : indices.stop : indices.step]
    subset = PagedNumbers(np.uint32, Pages(CHOSEN_BYTES))
    for places in _pieces(indices):
        inside = np.where(places < 0, places + len(chosen), places)
        if inside.size and not 0 <= inside.min() <= inside.max() < len(chosen):
            raise IndexError(f"Expected indices of {len(chosen)} rows, found one outside.")
        if isinstance(chosen, range):
            numbers = chosen.start + chosen.step * inside
        else:
            numbers = chosen.take(inside) if isinstance(chosen, PagedNumbers) else np.asarray(chosen)[inside]
        if numbers.size and numbers.max() >= MOST_ROWS:
            raise DataInvalid(f"Expected at most {MOST_ROWS:,} rows, found more; divide the data.")
        subset.extend(numbers)
    return subset


def _within(indices: range, count: int) -> bool:
    return indices.step > 0 and 0 <= indices.start <= indices.stop <= count


def _pieces(numbers: Indices) -> Iterator[npt.NDArray[np.intp]]:
    """Numbers, many at a time."""
    for start in range(0, len(numbers), PIECE):
        if isinstance(numbers, PagedNumbers):
            yield numbers.window(start, start + PIECE).astype(np.intp)
        else:
            yield np.asarray(numbers[start : start + PIECE], np.intp)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows that are read together: from ``start`` up to ``stop``, of which ``picked``; None: all."""

    start: int
    stop: int
    picked: tuple[int, ...] | None

    def of(self, values: list[object]) -> list[object]:
        """Of the values of all rows those of the picked ones."""
        return values if self.picked is None else [values[i] for i in self.picked]


def spans_of(chosen: Sequence[int]) -> Iterator[Span]:
    """Chosen rows in order, at most ``WINDOW`` at a time; near ones are read together."""
    if isinstance(chosen, range) and chosen.step == 1:
        for start in range(chosen.start, chosen.stop, WINDOW):
            yield Span(start, min(start + WINDOW, chosen.stop), None)
        return
    for rows in _pieces(chosen):
        gaps = np.diff(rows)
        begins = [0, *(np.flatnonzero((gaps <= 0) | (gaps > NEAR)) + 1).tolist(), len(rows)]
        for begin, end in pairwise(begins):
            for first in range(begin, end, WINDOW):
                some = rows[first : min(first + WINDOW, end)]
                start, stop = int(some[0]), int(some[-1]) + 1
                whole = stop - start == len(some)
                yield Span(start, stop, None if whole else tuple((some - start).tolist()))
