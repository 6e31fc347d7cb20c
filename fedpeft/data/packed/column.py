"""The values of one column as one run of UTF-8.

Invariant: a column gives back what it was given; a value missing in a row stays missing.
"""

import json
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from fedpeft.data.packed.chosen import PIECE, spans_of
from fedpeft.data.packed.paged import PagedBytes, PagedNumbers, Pages
from fedpeft.data.records import MISSING, Texts

__all__ = ["MEMORY_BYTES", "PackedColumn"]

MEMORY_BYTES = 32 * 2**20
"""Of all columns of a data set: more goes to a temporary file."""

STEP = 256
"""Rows between two whose place is kept; the others' is added up from sizes."""

TEXT, ABSENT, JSON, OBJECT = range(4)


class PackedColumn:
    """The values of one column; appended to while a file is read, then only looked at.

    Args:
        pages: where they lie; those of all columns of a data set may lie together. None: its own.
    """

    def __init__(self, pages: Pages | None = None) -> None:
        self._pages = Pages(MEMORY_BYTES) if pages is None else pages
        self._content = PagedBytes(self._pages)
        self._sizes = PagedNumbers(np.uint32, self._pages)
        self._kinds: PagedNumbers[np.uint8] | None = None  # None: all are texts
        self._places = array("Q")  # where row 0, STEP, 2 STEP ... begins
        self._count = 0
        self._objects: dict[int, object] = {}
        self.complete = True
        """Whether every row has the column."""

    def extend(self, values: Sequence[object] | Texts) -> None:
        """Add values: texts, what JSON can say, ``MISSING``; other objects are kept as they are."""
        if isinstance(values, Texts):
            self._append(None, values.sizes, values.content)
            return
        if set(map(type, values)) <= {str} and (text := "".join(values)).isascii():  # type: ignore[arg-type]
            # The usual case: one character a byte, so lengths need no encoding.
            self._append(None, _sizes(map(len, values)), text.encode("ascii"))  # type: ignore[arg-type]
            return
        packed = [self._packed(value, index) for index, value in enumerate(values, self._count)]
        kinds = bytes(kind for kind, _ in packed)
        self._append(kinds, _sizes(len(part) for _, part in packed), b"".join(part for _, part in packed))

    def _append(self, kinds: bytes | None, sizes: npt.NDArray[np.uint32], content: bytes) -> None:
        """Args: kinds: None where all are texts."""
        if kinds is not None and any(kinds) and self._kinds is None:
            self._kinds = PagedNumbers(np.uint8, self._pages)
            for start in range(0, self._count, PIECE):
                self._kinds.extend(np.zeros(min(PIECE, self._count - start), np.uint8))
        if self._kinds is not None:
            self._kinds.extend(np.frombuffer(bytes(len(sizes)) if kinds is None else kinds, np.uint8))
        if kinds is not None and ABSENT in kinds:
            self.complete = False
        begins = len(self._content) + np.cumsum(sizes, dtype=np.uint64) - sizes
        self._places.frombytes(begins[-self._count % STEP :: STEP].astype(np.uint64).tobytes())
        self._sizes.extend(sizes)
        self._content.append(content)
        self._count += len(sizes)

    def _packed(self, value: object, index: int) -> tuple[int, bytes]:
        if isinstance(value, str):
            return TEXT, value.encode("utf-8", "surrogatepass")
        if value is MISSING:
            return ABSENT, b""
        try:
            return JSON, json.dumps(value).encode("ascii")
        except (TypeError, ValueError):  # a date, bytes: of Parquet
            self._objects[index] = value
            return OBJECT, b""

    def has_any(self, rows: Sequence[int]) -> bool:
        """Whether one of these rows has the column."""
        if self.complete:
            return bool(len(rows))
        return any(
            kind != ABSENT
            for span in spans_of(rows)
            for kind in span.of(self._kinds_of(span.start, span.stop).tolist())
        )

    def _kinds_of(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return np.zeros(stop - start, np.uint8) if self._kinds is None else self._kinds.window(start, stop)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> object:
        row = range(len(self))[index]
        return self.window(row, row + 1)[0]

    def window(self, start: int, stop: int) -> list[object]:
        """The values from ``start`` up to ``stop``: one read, however many."""
        if start >= stop:
            return []
        step = start // STEP
        sizes = self._sizes.window(step * STEP, stop)
        base = self._places[step] + int(sizes[: start - step * STEP].sum(dtype=np.uint64))
        ends = list(accumulate(sizes[start - step * STEP :].tolist(), initial=base))
        block = self._content.read(base, ends[-1])
        spans = pairwise(ends)
        kinds = self._kinds_of(start, stop)
        if block.isascii() and not kinds.any():  # all text: one character a byte
            text = block.decode("ascii")
            return [text[begin - base : end - base] for begin, end in spans]
        parts = zip(range(start, stop), kinds.tolist(), spans, strict=True)
        return [self._value(i, kind, block[begin - base : end - base]) for i, kind, (begin, end) in parts]

    def _value(self, index: int, kind: int, packed: bytes) -> object:
        if kind == TEXT:
            return packed.decode("utf-8", "surrogatepass")
        if kind == ABSENT:
            return MISSING
        if kind == JSON:
            value: object = json.loads(packed)
            return value
        return self._objects[index]


def _sizes(sizes: Iterable[int]) -> npt.NDArray[np.uint32]:
    return np.array(list(sizes), np.uint32)
