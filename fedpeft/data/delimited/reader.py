"""CSV (RFC 4180) with a header line: rows by column, a few thousand at a time, every bad row by file and line.

The csv module decides what a row is. Beyond a file's first block, blocks in which every row is plainly one are split by
numpy instead (``fedpeft.data.delimited.split``), into the same rows and without an object per row: a row costs a fifth.
A block that the quick way declines goes through the csv module, up to the first row that ends with a block.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.data.delimited.split import split
from fedpeft.data.records import BATCH_ROWS, Batch, ProblemLog
from fedpeft.data.text_files import BLOCK_BYTES, Block, blocks, decoded

if TYPE_CHECKING:
    import _csv

__all__ = ["csv_batches"]


def csv_batches(path: Path, log: ProblemLog, *, delimiter: str = ",") -> Iterator[Batch]:
    """The rows of one file, in order; their values stay strings.

    A row with another number of fields than the header is a problem. Columns may be separated by semicolons, tabs
    or bars instead, if the header has no comma. A nameless column, such as the index that pandas writes, cannot be
    asked for and is left out.

    Args:
        path: the file.
        log: where bad rows are noted.
        delimiter: what separates columns, unless the header says otherwise.
    """
    lines = _Lines(path, log)
    first, delimiter = _first_line(lines, delimiter)
    if first is None:
        return
    line = lines.given
    lines.give_back(first)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(path, reader, log, line)
    if not any(header):
        return
    while lines:
        rows = _csv_rows(path, lines, reader, len(header), log)
        while some := list(islice(rows, BATCH_ROWS)):
            numbers, fields = zip(*some, strict=True)
            columns = zip(*fields, strict=True)
            yield Batch(lines=numbers, columns={n: column for n, column in zip(header, columns, strict=True) if n})
        while (block := lines.take()) is not None:
            found = split(block.content, delimiter, header)
            if found is None or len(found.rest) > BLOCK_BYTES:
                lines.put_back(block)
                break
            yield Batch(lines=found.lines + (block.before + 1), columns=found.columns)
            lines.put_back(Block(content=found.rest, before=block.before + found.line_count))


class _Lines(Iterator[str]):
    """A file's lines, one by one as text or by the block as bytes; each of them once."""

    def __init__(self, path: Path, log: ProblemLog) -> None:
        self._path, self._log = path, log
        self._blocks = blocks(path, log)
        self._ahead: list[str] = []  # lines of a block that was decoded, the next one last
        self._rest: Block | None = None
        self._ended = False
        self.given = 0

    def __bool__(self) -> bool:
        """Whether there may be more."""
        return bool(self._ahead) or self._rest is not None or not self._ended

    @property
    def within_a_block(self) -> bool:
        """Whether lines of the block that is given line by line are left."""
        return bool(self._ahead)

    def __next__(self) -> str:
        while not self._ahead:
            block, self._rest = self._rest or self._next_block(), None
            if block is None:
                raise StopIteration
            self._ahead = decoded(self._path, block, self._log)[::-1]
        self.given += 1
        return self._ahead.pop()

    def give_back(self, line: str) -> None:
        """Give this line, the last one that was given, once more."""
        self._ahead.append(line)
        self.given -= 1

    def take(self) -> Block | None:
        """What was put back and the next block, as one; None at the end. Only between blocks."""
        block, rest, self._rest = self._next_block(), self._rest, None
        if block is None or rest is None:
            return block or rest
        return Block(content=rest.content + block.content, before=rest.before)

    def _next_block(self) -> Block | None:
        block = next(self._blocks, None)
        self._ended = block is None
        return block

    def put_back(self, block: Block) -> None:
        """Give these lines before the next block's."""
        self._rest = block if block.content else None
        self.given = block.before


def _first_line(lines: Iterator[str], delimiter: str) -> tuple[str | None, str]:
    """The header's line, and what separates its names.

    Before it may stand blank lines, and Excel's ``sep=;``.
    """
    said = ""
    for line in lines:
        mark = re.fullmatch(r'"?sep=([^\r\n"])"?\s*', line, re.IGNORECASE)
        if line.strip() and not (mark and not said):
            return line, said or _delimiter(line, delimiter)
        said = mark.group(1) if mark else said
    return None, delimiter


def _csv_rows(
    path: Path, lines: _Lines, reader: "_csv.Reader", width: int, log: ProblemLog
) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and its fields, up to a row that ends with a block.

    What is no row, or has another width, is noted and left out.
    """
    begin = lines.given + 1
    while True:
        try:
            for fields in reader:
                if len(fields) == width:
                    yield begin, fields
                elif fields:  # a blank line is not a row
                    found = f"{len(fields)}"
                    log.add(f"{path}:{begin}", f"{width} fields as in the header", found, "Check the quotes.")
                begin = lines.given + 1
                if not lines.within_a_block:
                    return
            return
        except csv.Error as error:
            log.add(f"{path}:{begin}", "a CSV row", str(error), _csv_remedy(str(error)))
            begin = lines.given + 1


def _delimiter(header: str, expected: str) -> str:
    """What separates the names of a header: the expected mark where it occurs, else the most frequent of the others."""
    if expected in header:
        return expected
    return max((mark for mark in ";\t|," if mark in header), key=header.count, default=expected)


def _csv_remedy(reason: str) -> str:
    if "field limit" in reason or "field larger" in reason:
        return "Use JSONL or Parquet for such long texts."
    return 'Check the quotes: one inside a quoted field is written twice, "".'


def _header(path: Path, reader: Iterator[list[str]], log: ProblemLog, line: int) -> Sequence[str]:
    """The column names, the nameless as empty; or an empty list after noting why there are none."""
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        log.add(f"{path}:{line}", "a CSV header", str(error), _csv_remedy(str(error)))
        return []
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        twice = sorted({name for name in named if named.count(name) > 1})
        found = f"{', '.join(map(repr, twice))} twice"
        log.add(f"{path}:{line}", "distinct column names", found, "Rename or remove one.")
        return []
    if header and not named:
        log.add(f"{path}:{line}", "column names in the first line", "none", "Write a header such as text,label.")
        return []
    if header and header[0].startswith("#"):
        log.add(f"{path}:{line}", "column names in the first line", "a comment", "Remove the lines before the header.")
        return []
    return header
