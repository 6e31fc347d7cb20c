"""JSONL, JSON and CSV readers: strict UTF-8, every bad line named, nothing guessed.

A reader yields ``(line number, row)`` and notes what it could not read in the ``ProblemLog``; it goes on
after a bad line so that one run finds them all.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from fedpeft.data.records import ProblemLog

__all__ = ["MAX_LINE_BYTES", "read_csv", "read_json", "read_jsonl"]

MAX_LINE_BYTES = 16 * 2**20
"""One example of 16 MiB is a file that has lost its line ends, not an example."""

Row = tuple[int, Mapping[str, object]]


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
            value = _parse(line)
        except (ValueError, RecursionError) as error:
            log.add(where, "one JSON object a line", _reason(error), "Correct or remove the line.")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            log.add(where, 'a JSON object such as {"text": ...}', type(value).__name__)


def read_json(path: Path, log: ProblemLog) -> Iterator[Row]:
    """A JSON array of objects (Alpaca's own format), or, if the file does not begin with ``[``, JSONL.

    Rows of an array are numbered by position, from 1.
    """
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        yield from read_jsonl(path, log)
        return
    try:
        values = _parse(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        log.add(str(path), "a JSON array of objects in UTF-8", _reason(error))
        return
    for number, value in enumerate(values if isinstance(values, list) else (), 1):
        if isinstance(value, dict):
            yield number, value
        else:
            log.add(f"{path}:{number}", "a JSON object", type(value).__name__)


def read_csv(path: Path, log: ProblemLog, *, delimiter: str = ",") -> Iterator[Row]:
    """RFC 4180 with a header line. Values stay strings; a row with another number of fields is a problem."""
    reader = csv.reader((line for _, line in _lines(path, log)), delimiter=delimiter, strict=True)
    header = _header(path, reader, log, delimiter)
    while header:
        begin = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "Use JSONL or Parquet for such long texts." if "field limit" in str(error) else "Check the quotes."
            log.add(f"{path}:{begin}", "a CSV row", str(error), remedy)
            continue
        if len(fields) == len(header):
            yield begin, dict(zip(header, fields, strict=True))
        elif fields:  # a blank line is not a row
            log.add(f"{path}:{begin}", f"{len(header)} fields as in the header", f"{len(fields)}", "Check the quotes.")


def _header(path: Path, reader: Iterator[list[str]], log: ProblemLog, delimiter: str) -> list[str]:
    """The column names, or an empty list after noting why there are none."""
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        log.add(f"{path}:1", "a CSV header", str(error))
        return []
    if len(header) == 1 and any(mark in header[0] for mark in ";\t,|" if mark != delimiter):
        log.add(f"{path}:1", f"columns separated by {delimiter!r}", repr(header[0]), "Convert the separator.")
        return []
    if header and (len(set(header)) < len(header) or "" in header):
        log.add(f"{path}:1", "distinct, non-empty column names", ", ".join(map(repr, header)))
        return []
    return header


def _lines(path: Path, log: ProblemLog) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, decoded; one that is not UTF-8 is noted and goes on with replacement marks."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            log.add(str(path), "UTF-8", "UTF-16", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}.")
            return
        file.seek(0)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                log.add(f"{path}:{number}", f"a line of at most {MAX_LINE_BYTES} bytes", "a longer one")
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the BOM that Windows programs write
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at position {error.start}"
                log.add(f"{path}:{number}", "UTF-8", found, "Convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8.")
                text = line.decode("utf-8", errors="replace")
            yield number, text


def _parse(text: str) -> object:
    value: object = json.loads(text, parse_constant=_refuse_constant)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _reason(error: Exception) -> str:
    return "nesting too deep" if isinstance(error, RecursionError) else str(error)
