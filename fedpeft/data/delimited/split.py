"""Whole blocks of CSV into columns by numpy, where nothing is out of the ordinary; the csv module reads what is left.

Invariant: rows that ``split`` gives are those that ``csv.reader(..., strict=True)`` gives for the same bytes
(tests/data/test_delimited.py compares them). Whatever it does not want to decide it declines: a row of another width,
a blank line, a quote where none belongs, a carriage return alone, a NUL, what is not UTF-8, a field beyond csv's limit.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import Texts

__all__ = ["Split", "split"]

LF, CR, QUOTE = b"\n"[0], b"\r"[0], b'"'[0]

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The rows of a block.

    Args:
        lines: the line that each row begins with, from 0 in the block, shape (rows,).
        columns: name -> the rows' texts.
        rest: the beginning of a row that the block does not end.
        line_count: lines before ``rest``.
    """

    lines: Places
    columns: Mapping[str, Texts]
    rest: bytes
    line_count: int


def split(content: bytes, delimiter: str, header: Sequence[str]) -> Split | None:
    """The rows of a block of whole lines; None where the csv module has to look.

    Args:
        content: begins with a row.
        delimiter: between columns.
        header: the columns' names; those of a nameless one are not wanted.
    """
    if len(delimiter) > 1 or not delimiter.isascii() or delimiter in '"\r\n' or not _is_plain_utf8(content):
        return None
    mark = ord(delimiter)
    block = np.frombuffer(content, np.uint8)  # (bytes,)
    quotes: Places = np.flatnonzero(block == QUOTE)
    outside = _outside(block.size, quotes)
    ends = np.flatnonzero((block == LF) & outside)
    if not ends.size:
        return None
    stop = int(ends[-1]) + 1
    block, outside, quotes = block[:stop], outside[:stop], quotes[quotes < stop]
    fields = np.flatnonzero(((block == mark) | (block == LF)) & outside)  # where each field ends
    if (
        not _are_strict(block, quotes, mark)
        or not _ends_lines(block, outside)
        or fields.size != ends.size * len(header)
    ):
        return None
    field_ends = fields.reshape(ends.size, len(header))
    if not np.array_equal(field_ends[:, -1], ends):  # rows too short and too long
        return None
    field_starts = np.concatenate([[0], fields[:-1] + 1]).reshape(field_ends.shape)
    field_ends[:, -1] -= block[ends - 1] == CR  # of CR LF; row 0 is not blank, so ends[0] > 0 or width is 1
    sizes = field_ends - field_starts
    if (len(header) == 1 and not sizes.all()) or sizes.max() > csv.field_size_limit():
        return None
    marks = _marks(block, quotes)
    columns = {
        name: _column(block, marks, field_starts[:, i], field_ends[:, i]) for i, name in enumerate(header) if name
    }
    lines = np.flatnonzero(block == LF)
    return Split(
        lines=np.searchsorted(lines, field_starts[:, 0]),
        columns=columns,
        rest=content[stop:],
        line_count=int(lines.size),
    )


def _is_plain_utf8(content: bytes) -> bool:
    """Whether nothing of the content has to be named: it is UTF-8, without NUL."""
    if b"\0" in content:
        return False
    if not content.isascii():
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


def _outside(size: int, quotes: Places) -> npt.NDArray[np.bool_]:
    """Which bytes stand outside of quotes, if every quote opens or closes; shape (bytes,)."""
    if not quotes.size:
        return np.ones(size, np.bool_)
    turns = np.zeros(size, np.uint8)
    turns[quotes] = 1
    outside: npt.NDArray[np.bool_] = np.bitwise_xor.accumulate(turns) == 0
    return outside


def _are_strict(block: Bytes, quotes: Places, mark: int) -> bool:
    """Whether every quote opens a field, closes one, or is one of a pair inside a quoted field."""
    opening, closing = quotes[::2], quotes[1::2]
    # What stands before byte 0 is the end of a row; after the last quote a row's end is still to come.
    before = np.where(opening > 0, block[opening - 1], LF)
    after = block[closing + 1]
    opens = (before == mark) | (before == LF) | (before == QUOTE)
    closes = (after == mark) | (after == LF) | (after == CR) | (after == QUOTE)
    return bool(opens.all() and closes.all())


def _ends_lines(block: Bytes, outside: npt.NDArray[np.bool_]) -> bool:
    """Whether every carriage return outside of quotes belongs to the end of a line."""
    returns = np.flatnonzero((block == CR) & outside)
    return not returns.size or bool((block[returns + 1] == LF).all())


def _marks(block: Bytes, quotes: Places) -> Places:
    """Where the quotes are that are no text: all but the second of a pair, which is one; ascending."""
    text = np.zeros(quotes.size, np.bool_)
    opening = quotes[::2]
    text[::2] = (opening > 0) & (block[opening - 1] == QUOTE)
    return quotes[~text]


def _column(block: Bytes, marks: Places, starts: Places, ends: Places) -> Texts:
    """The texts of one column, one behind the other."""
    turns = np.zeros(block.size + 1, np.int8)
    turns[starts] += 1
    turns[ends] -= 1
    inside = np.add.accumulate(turns[:-1], dtype=np.int8).view(np.bool_)
    sizes = ends - starts
    if marks.size:
        inside[marks] = False
        sizes = sizes - (np.searchsorted(marks, ends) - np.searchsorted(marks, starts))
    return Texts(content=block[inside].tobytes(), sizes=sizes.astype(np.uint32))
