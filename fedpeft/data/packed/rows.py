"""Rows over packed columns."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import overload

from fedpeft.data.packed.chosen import Indices, spans_of, subset_of
from fedpeft.data.packed.column import PackedColumn
from fedpeft.data.records import MISSING, Record, Table

__all__ = ["PackedRows"]


class PackedRows(Table):
    """Rows over packed columns.

    Args:
        columns: name -> values, all of one length.
        chosen: which rows, in order.
    """

    def __init__(self, columns: Mapping[str, PackedColumn], chosen: Sequence[int]) -> None:
        self._columns, self._chosen = columns, chosen

    def select(self, indices: Indices) -> "PackedRows":
        """See ``Subsettable``."""
        return PackedRows(self._columns, subset_of(self._chosen, indices))

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
        for span in spans_of(self._chosen):
            if column is None:
                yield [None] * len(span.picked or range(span.start, span.stop))
                continue
            window = span.of(column.window(span.start, span.stop))
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
        for span in spans_of(self._chosen):
            windows = (span.of(column.window(span.start, span.stop)) for column in self._columns.values())
            for values in zip(*windows, strict=True):
                row = dict(zip(names, values, strict=True))
                if complete:
                    yield row
                    continue
                yield {name: value for name, value in row.items() if value is not MISSING} if MISSING in values else row
