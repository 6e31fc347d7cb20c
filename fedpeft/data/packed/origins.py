"""Where packed rows came from, file and line, without a text for each."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from fedpeft.data.packed.chosen import CHOSEN_BYTES, Indices, subset_of
from fedpeft.data.packed.paged import PagedNumbers, Pages
from fedpeft.data.records import Subsettable

__all__ = ["LineNumbers", "PackedOrigins"]


class LineNumbers(Sequence[int]):
    """Numbers that mostly follow each other, as runs; appended to while a file is read, then only looked at."""

    def __init__(self) -> None:
        pages = Pages(CHOSEN_BYTES)
        self._count = 0
        self._firsts = PagedNumbers(np.uint64, pages)  # index of each run's first number
        self._numbers = PagedNumbers(np.uint64, pages)
        self._seen = (0, 0, 0)  # the run looked at last: its first index, the one behind its last, its first number

    def extend(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> None:
        """Add numbers."""
        added = np.asarray(numbers, np.uint64)
        if not added.size:
            return
        follows = added[1:] == added[:-1] + 1  # a run over the end of a batch is two
        firsts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
        self._firsts.extend(firsts + self._count)
        self._numbers.extend(added[firsts])
        self._count += added.size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        row = range(self._count)[index]
        first, end, number = self._seen
        if not first <= row < end:
            run = bisect_right(self._firsts, row) - 1
            first, number = self._firsts[run], self._numbers[run]
            end = self._firsts[run + 1] if run + 1 < len(self._firsts) else self._count
            self._seen = first, end, number
        return number + row - first


class PackedOrigins(Subsettable[str]):
    """``file:line`` of each row, made when asked for.

    Args:
        files: each file's name and the index of its first row, ascending.
        lines: each row's line.
        chosen: which rows, in order.
    """

    def __init__(self, files: Sequence[tuple[str, int]], lines: Sequence[int], chosen: Sequence[int]) -> None:
        self._files, self._lines, self._chosen = files, lines, chosen

    def select(self, indices: Indices) -> "PackedOrigins":
        """See ``Subsettable``."""
        return PackedOrigins(self._files, self._lines, subset_of(self._chosen, indices))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedOrigins": ...
    def __getitem__(self, index: int | slice) -> "str | PackedOrigins":
        if isinstance(index, slice):
            return PackedOrigins(self._files, self._lines, self._chosen[index])
        row = self._chosen[index]
        name, _ = self._files[bisect_right(self._files, row, key=lambda file: file[1]) - 1]
        return f"{name}:{self._lines[row]}"
