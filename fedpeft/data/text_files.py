"""JSONL, JSON and CSV readers: strict UTF-8, every bad line named, nothing guessed.

A reader yields ``(line number, row)`` and notes what it could not read in the ``ProblemLog``; it goes on
after a bad line so that one run finds them all.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from fedpeft import bounded_json
from fedpeft.bounded_json import JsonLimits, JsonRefused
from fedpeft.data.opening import BROKEN, mislabelled, opened, plain_suffix, sort_of, wide_encoding
from fedpeft.data.records import BATCH_ROWS, Batch, ProblemLog

if TYPE_CHECKING:
    import _csv

__all__ = ["MAX_LINE_BYTES", "csv_batches", "read_json", "read_jsonl"]

BOM = b"\xef\xbb\xbf"
BLOCK_BYTES = 2**18
"""Read and decoded at once."""

MAX_LINE_BYTES = 16 * 2**20
"""One example of 16 MiB is a file that has lost its line ends, not an example."""
MAX_ARRAY_BYTES = 2**30
"""A JSON array is parsed whole and takes several times its size in memory; JSONL is read line by line."""

Row = tuple[int, Mapping[str, object]]

LINE = JsonLimits(max_bytes=MAX_LINE_BYTES, max_depth=64, max_digits=4000, surrogates=True)
"""Of one row. Columns that nobody uses may hold anything; ``validate`` names half surrogate pairs with their row."""
ARRAY = JsonLimits(max_bytes=MAX_ARRAY_BYTES, max_depth=66, max_digits=4000, surrogates=True)


def read_jsonl(path: Path, log: ProblemLog) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped.

    Args:
        path: the file.
        log: where bad lines are noted.
    """
    for number, line in _lines(path, log):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = bounded_json.loads(line, LINE)
        except JsonRefused as error:
            log.add(where, "one JSON object a line", str(error), _json_remedy(str(error)))
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            log.add(where, 'a JSON object such as {"text": ...}', type(value).__name__)


def _json_remedy(reason: str) -> str:
    return "Write null for a missing value." if "not JSON" in reason else "Correct or remove the line."


def read_json(path: Path, log: ProblemLog) -> Iterator[Row]:
    """A JSON array of objects (Alpaca's own format), or, if the file does not begin with ``[``, JSONL.

    Rows of an array are numbered by position, from 1.
    """
    content = _json_document(path)
    if content is None:
        yield from read_jsonl(path, log)
        return
    try:
        value = bounded_json.loads(content, ARRAY)
    except JsonRefused as error:
        log.add(str(path), "a JSON array of objects in UTF-8", str(error))
        return
    if isinstance(value, dict):
        found = f"one object with the keys {', '.join(list(value)[:8])}"
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        remedy = f"Take the list out, e.g. jq -c '.{lists[0]}[]' {path.name} > rows.jsonl." if lists else ""
        log.add(str(path), "a JSON array of objects, or one object a line", found, remedy)
        return
    for number, row in enumerate(value if isinstance(value, list) else (), 1):
        if isinstance(row, dict):
            yield number, row
        else:
            log.add(f"{path}:{number}", "a JSON object", type(row).__name__)


def _json_document(path: Path) -> bytes | None:
    """The file's bytes if it is one JSON value over several lines; None for JSONL and for what cannot be opened."""
    try:
        with opened(path) as file:
            content = file.readline(MAX_LINE_BYTES).removeprefix(BOM).lstrip()
            while not content and (line := file.readline(MAX_LINE_BYTES)):
                content = line.lstrip()
            spread = plain_suffix(path) == ".json" and content.startswith(b"{") and not _is_object(content)
            whole = spread or content.startswith(b"[")
            return content + file.read(MAX_ARRAY_BYTES + 1) if whole else None
    except BROKEN:
        return None  # JSONL's reader names it


def _is_object(line: bytes) -> bool:
    """Whether a line is meant as one row. One that is cut inside is a row too, and is named as such."""
    try:
        return isinstance(bounded_json.loads(line, LINE), dict)
    except JsonRefused as error:
        # `{`, or `{"data": [` alone on its line: an object over several lines.
        return not (line.strip().endswith((b"{", b"[", b",")) and "end too early" in str(error))


def csv_batches(path: Path, log: ProblemLog, *, delimiter: str = ",") -> Iterator[Batch]:
    """RFC 4180 with a header line, a few thousand rows at a time, by column.

    Values stay strings; a row with another number of fields is a problem. Columns may be separated by semicolons, tabs
    or bars instead, if the header has no comma. A nameless column, such as the index that pandas writes, cannot be
    asked for and is left out.
    """
    lines = chain.from_iterable(_blocks(path, log))
    before, first, delimiter = _first_line(lines, delimiter)
    if first is None:
        return
    reader = csv.reader(chain((first,), lines), delimiter=delimiter, strict=True)
    header = _header(path, reader, log, before + 1)
    if not any(header):
        return
    rows = _csv_rows(path, reader, len(header), before, log)
    while some := list(islice(rows, BATCH_ROWS)):
        numbers, fields = zip(*some, strict=True)
        columns = zip(*fields, strict=True)
        yield Batch(lines=numbers, columns={name: column for name, column in zip(header, columns, strict=True) if name})


def _first_line(lines: Iterator[str], delimiter: str) -> tuple[int, str | None, str]:
    """How many lines stand before the header, the header's line, and what separates its names.

    Before it may stand blank lines, and Excel's ``sep=;``.
    """
    before, said = 0, ""
    for line in lines:
        mark = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE | re.DOTALL)
        if line.strip() and not (mark and not said):
            return before, line, said or _delimiter(line, delimiter)
        said = mark.group(1) if mark else said
        before += 1
    return before, None, delimiter


def _csv_rows(
    path: Path, reader: "_csv.Reader", width: int, before: int, log: ProblemLog
) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and its fields; a row that is none, or has another width, is noted and left out."""
    begin = before + reader.line_num + 1
    while True:
        try:
            for fields in reader:
                if len(fields) == width:
                    yield begin, fields
                elif fields:  # a blank line is not a row
                    found = f"{len(fields)}"
                    log.add(f"{path}:{begin}", f"{width} fields as in the header", found, "Check the quotes.")
                begin = before + reader.line_num + 1
            return
        except csv.Error as error:
            log.add(f"{path}:{begin}", "a CSV row", str(error), _csv_remedy(str(error)))
            begin = before + reader.line_num + 1


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


def _lines(path: Path, log: ProblemLog) -> Iterator[tuple[int, str]]:
    """Lines with their numbers."""
    return enumerate(chain.from_iterable(_blocks(path, log)), 1)


def _blocks(path: Path, log: ProblemLog) -> Iterator[Sequence[str]]:
    """All lines, decoded, many at a time; one that is not UTF-8 is noted and goes on with replacement marks."""
    number = 0  # lines given so far
    try:
        with opened(path) as file:
            rest = file.readline(MAX_LINE_BYTES + 1)
            if not _is_text(path, rest, log):
                return
            rest = rest.removeprefix(BOM)  # which Windows programs write
            more = rest
            while more:
                more = file.read(BLOCK_BYTES)
                whole = rest + more
                end = whole.rfind(b"\n") + 1 if more else len(whole)
                rest = whole[end:]
                lines, too_long = _decoded(path, whole[:end], number, log)
                number += len(lines)
                yield lines
                if too_long or len(rest) > MAX_LINE_BYTES:
                    found = "a longer one"
                    log.add(f"{path}:{number + 1}", f"a line of at most {MAX_LINE_BYTES} bytes", found)
                    return
    except BROKEN as error:
        sort, remedy = mislabelled(path)
        reason = sort or str(error) or type(error).__name__
        expected = "a file that can be read to its end"
        log.add(f"{path}:{number + 1}", expected, reason, remedy or "Fetch or make it again.")


def _decoded(path: Path, block: bytes, before: int, log: ProblemLog) -> tuple[list[str], bool]:
    """The lines of a block, up to one beyond the limit, and whether there is such a one."""
    if len(block) <= MAX_LINE_BYTES and b"\0" not in block:
        try:
            return list(io.StringIO(block.decode("utf-8"), newline="\n")), False
        except UnicodeDecodeError:
            pass  # line by line, to name it
    lines: list[str] = []
    for line in io.BytesIO(block):
        if len(line) > MAX_LINE_BYTES:
            return lines, True
        lines.append(_text(line, f"{path}:{before + len(lines) + 1}", log))
    return lines, False


def _is_text(path: Path, first: bytes, log: ProblemLog) -> bool:
    """Whether a file's first line looks like text in UTF-8; notes what it looks like otherwise."""
    if wide := wide_encoding(first):
        encoding, mark = wide
        remedy = f"Convert it: iconv -f {encoding} -t UTF-8 {quote(path.name)}."
        log.add(str(path), "UTF-8", encoding if mark else f"{encoding} without a mark", remedy)
        return False
    sort, remedy = sort_of(first, path)
    if sort:
        log.add(str(path), "a text file, as its name says", sort, remedy)
        return False
    body = first.rstrip(b"\r\n")
    if b"\r" in body and not first.endswith(b"\n"):
        remedy = f"Convert it: tr '\\r' '\\n' < {quote(path.name)}."
        log.add(str(path), "lines that end in LF or CR LF", "CR alone", remedy)
        return False
    return True


def _text(line: bytes, where: str, log: ProblemLog) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at position {error.start}"
        log.add(where, "UTF-8", found, "Convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8.")
        text = line.decode("utf-8", errors="replace")
    if "\0" in text:
        log.add(where, "text", "a NUL byte", "Remove it, e.g. tr -d '\\000'; a file full of them is UTF-16.")
        text = text.replace("\0", "")
    return text
