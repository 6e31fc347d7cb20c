"""Rows of a file in few bytes: every column is one run of UTF-8, beyond a size on the disk and not in memory.

A row as a Python dictionary takes five times its text. Here a column's values lie one behind the other with their
sizes in an array, and a dictionary is made of a row only while somebody looks at it. What outgrows
``MEMORY_BYTES`` a column goes to a nameless temporary file, private to this process and gone with it.

Invariant: ``PackedColumn`` gives back what it was given; a value missing in a row stays missing.
"""

import json
import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import BinaryIO, overload

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import MISSING, WINDOW, Record, Subsettable, Table, Texts

__all__ = ["MEMORY_BYTES", "LineNumbers", "PackedColumn", "PackedOrigins", "PackedRows"]

MEMORY_BYTES = 32 * 2**20
"""Of one column: more goes to a temporary file."""

STEP = 64
"""Rows between two whose place is kept; the others' is added up from sizes."""

TEXT, ABSENT, JSON, OBJECT = range(4)


class PackedColumn:
    """The values of one column; appended to while a file is read, then only looked at."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._sizes = array("I")
        self._places = array("Q")  # where row 0, STEP, 2 STEP ... begins
        self._end = 0
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._filed = 0  # bytes in the file; what lies in memory begins there
        self._objects: dict[int, object] = {}

    def extend(self, values: Sequence[object] | Texts) -> None:
        """Add values: texts, what JSON can say, ``MISSING``; other objects are kept as they are."""
        if isinstance(values, Texts):
            self._append(bytes(len(values)), values.sizes, values.content)
            return
        if set(map(type, values)) <= {str} and (text := "".join(values)).isascii():  # type: ignore[arg-type]
            # The usual case: one character a byte, so lengths need no encoding.
            self._append(bytes(len(values)), _sizes(map(len, values)), text.encode("ascii"))  # type: ignore[arg-type]
            return
        start = len(self._kinds)
        parts: list[bytes] = []
        for offset, value in enumerate(values):
            if isinstance(value, str):
                self._kinds.append(TEXT)
                parts.append(value.encode("utf-8", "surrogatepass"))
            elif value is MISSING:
                self._kinds.append(ABSENT)
                parts.append(b"")
            else:
                parts.append(self._packed(value, start + offset))
        self._append(b"", _sizes(map(len, parts)), b"".join(parts))

    def _append(self, kinds: bytes, sizes: npt.NDArray[np.uint32], content: bytes) -> None:
        before = len(self._sizes)
        begins = self._end + np.cumsum(sizes, dtype=np.uint64) - sizes
        self._places.frombytes(begins[-before % STEP :: STEP].astype(np.uint64).tobytes())
        self._sizes.frombytes(sizes.tobytes())
        self._kinds += kinds
        self._end += len(content)
        self._memory += content
        if len(self._memory) > MEMORY_BYTES:
            self._spill()

    def _packed(self, value: object, index: int) -> bytes:
        try:
            packed = json.dumps(value).encode("ascii")
        except (TypeError, ValueError):  # a date, bytes: of Parquet
            self._objects[index] = value
            self._kinds.append(OBJECT)
            return b""
        self._kinds.append(JSON)
        return packed

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fedpeft-")  # noqa: SIM115 - lives as long as the column
        self._file.write(self._memory)
        self._file.flush()
        self._filed += len(self._memory)
        self._memory = bytearray()

    @property
    def complete(self) -> bool:
        """Whether every row has the column."""
        return ABSENT not in self._kinds

    def has_any(self, rows: Sequence[int]) -> bool:
        """Whether one of these rows has the column."""
        return bool(len(rows)) and (ABSENT not in self._kinds or any(self._kinds[row] != ABSENT for row in rows))

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> object:
        row = range(len(self))[index]
        begin = self._begin(row)
        return self._value(row, self._bytes(begin, begin + self._sizes[row]))

    def _begin(self, row: int) -> int:
        return self._places[row // STEP] + sum(self._sizes[row - row % STEP : row])

    def window(self, start: int, stop: int) -> list[object]:
        """The values from ``start`` up to ``stop``: one read, however many."""
        if start >= stop:
            return []
        base = self._begin(start)
        ends = list(accumulate(self._sizes[start:stop], initial=base))
        block = self._bytes(base, ends[-1])
        spans = pairwise(ends)
        if block.isascii() and not any(self._kinds[start:stop]):  # all text: one character a byte
            text = block.decode("ascii")
            return [text[begin - base : end - base] for begin, end in spans]
        return [self._value(i, block[begin - base : end - base]) for i, (begin, end) in enumerate(spans, start)]

    def _value(self, index: int, packed: bytes) -> object:
        match self._kinds[index]:
            case kind if kind == TEXT:
                return packed.decode("utf-8", "surrogatepass")
            case kind if kind == ABSENT:
                return MISSING
            case kind if kind == JSON:
                value: object = json.loads(packed)
                return value
            case _:
                return self._objects[index]

    def _bytes(self, start: int, stop: int) -> bytes:
        if start >= self._filed:
            return bytes(self._memory[start - self._filed : stop - self._filed])
        if self._file is None:
            raise RuntimeError("a packed column lost its file")
        inside = min(stop, self._filed)
        read = b""
        while len(read) < inside - start:  # one call may give less
            part = os.pread(self._file.fileno(), inside - start - len(read), start + len(read))
            if not part:
                raise OSError(f"Expected {inside - start} bytes of a temporary file, found {len(read)}.")
            read += part
        return read + bytes(self._memory[: max(0, stop - self._filed)])


def _sizes(sizes: Iterable[int]) -> npt.NDArray[np.uint32]:
    return np.array(list(sizes), np.uint32)


class LineNumbers(Sequence[int]):
    """Numbers that mostly follow each other, as runs; appended to while a file is read, then only looked at."""

    def __init__(self) -> None:
        self._count = 0
        self._firsts = array("Q")  # index of each run's first number
        self._numbers = array("Q")

    def extend(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> None:
        """Add numbers."""
        added = np.asarray(numbers, np.uint64)
        if not added.size:
            return
        follows = added[1:] == added[:-1] + 1  # a run over the end of a batch is two
        firsts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
        self._firsts.frombytes((firsts + self._count).astype(np.uint64).tobytes())
        self._numbers.frombytes(added[firsts].tobytes())
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
        run = bisect_right(self._firsts, row) - 1
        return self._numbers[run] + row - self._firsts[run]


class PackedRows(Table):
    """Rows over packed columns.

    Args:
        columns: name -> values, all of one length.
        chosen: which rows, in order.
    """

    def __init__(self, columns: Mapping[str, PackedColumn], chosen: Sequence[int]) -> None:
        self._columns, self._chosen = columns, chosen

    def select(self, indices: Sequence[int]) -> "PackedRows":
        """See ``Subsettable``."""
        return PackedRows(self._columns, _subset(self._chosen, indices))

    def names(self) -> tuple[str, ...]:
        """See ``Table``."""
        return tuple(name for name, column in self._columns.items() if column.has_any(self._chosen))

    def values(self, name: str) -> Iterator[object]:
        """See ``Table``."""
        return chain.from_iterable(self.windows(name))

    def windows(self, name: str) -> Iterator[list[object]]:
        """See ``Table``."""
        column = self._columns.get(name)
        complete = column is not None and column.complete
        for start, stop in _runs(self._chosen):
            if column is None:
                yield [None] * (stop - start)
                continue
            window = column.window(start, stop)
            yield window if complete else [None if value is MISSING else value for value in window]

    def under(self, names: Mapping[str, str]) -> "PackedRows":
        """The same rows with further names (ours -> theirs) for columns that there are."""
        further = {ours: self._columns[theirs] for ours, theirs in names.items()}
        return PackedRows({**self._columns, **further}, self._chosen)

    def without(self, name: str) -> "PackedRows":
        """The same rows without a column."""
        return PackedRows({one: column for one, column in self._columns.items() if one != name}, self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedRows": ...
    def __getitem__(self, index: int | slice) -> "Record | PackedRows":
        if isinstance(index, slice):
            return PackedRows(self._columns, self._chosen[index])
        row = self._chosen[index]
        values = ((name, column[row]) for name, column in self._columns.items())
        return {name: value for name, value in values if value is not MISSING}

    def __iter__(self) -> Iterator[Record]:
        names = tuple(self._columns)
        complete = all(column.complete for column in self._columns.values())
        for start, stop in _runs(self._chosen):
            for values in zip(*(column.window(start, stop) for column in self._columns.values()), strict=True):
                row = dict(zip(names, values, strict=True))
                if complete:
                    yield row
                    continue
                yield {name: value for name, value in row.items() if value is not MISSING} if MISSING in values else row


class PackedOrigins(Subsettable[str]):
    """``file:line`` of each row, made when asked for.

    Args:
        files: each file's name and the index of its first row, ascending.
        lines: each row's line.
        chosen: which rows, in order.
    """

    def __init__(self, files: Sequence[tuple[str, int]], lines: Sequence[int], chosen: Sequence[int]) -> None:
        self._files, self._lines, self._chosen = files, lines, chosen

    def select(self, indices: Sequence[int]) -> "PackedOrigins":
        """See ``Subsettable``."""
        return PackedOrigins(self._files, self._lines, _subset(self._chosen, indices))

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


def _subset(chosen: Sequence[int], indices: Sequence[int]) -> "array[int]":
    return array("Q", map(chosen.__getitem__, indices))


def _runs(chosen: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Windows of rows that follow each other: (first, one behind the last)."""
    position = 0
    while position < len(chosen):
        first = chosen[position]
        end = min(position + WINDOW, len(chosen))
        # A whole window in a row is the usual case and is found by its last element; else it is cut at the first gap.
        if chosen[end - 1] - first != end - 1 - position or not _ascending(chosen, position, end):
            end = next(i for i in range(position + 1, end + 1) if i == end or chosen[i] != first + i - position)
        yield first, first + end - position
        position = end


def _ascending(chosen: Sequence[int], start: int, end: int) -> bool:
    return isinstance(chosen, range) or all(chosen[i + 1] == chosen[i] + 1 for i in range(start, end - 1))
