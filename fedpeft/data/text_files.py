"""JSONL and JSON readers, and the lines of any text file: strict UTF-8, every bad line named, nothing guessed.

A reader yields ``(line number, row)`` and notes what it could not read in the ``ProblemLog``; it goes on
after a bad line so that one run finds them all.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from fedpeft import bounded_json
from fedpeft.bounded_json import JsonLimits, JsonRefused
from fedpeft.data.opening import BROKEN, mislabelled, opened, plain_suffix, sort_of, wide_encoding
from fedpeft.data.records import ProblemLog

__all__ = ["BLOCK_BYTES", "MAX_LINE_BYTES", "Block", "blocks", "decoded", "read_json", "read_jsonl"]

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
        log.add(str(path), "a JSON array of objects, or one object per line", found, remedy)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Whole lines that follow each other in a file.

    Args:
        content: their bytes, line ends included; nothing says yet that they are UTF-8.
        before: lines of the file before them.
    """

    content: bytes
    before: int


def _lines(path: Path, log: ProblemLog) -> Iterator[tuple[int, str]]:
    """Lines with their numbers."""
    for block in blocks(path, log):
        yield from enumerate(decoded(path, block, log), block.before + 1)


def blocks(path: Path, log: ProblemLog) -> Iterator[Block]:
    """All lines of a text file, many at a time, up to one that is too long; the byte order mark is not among them."""
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
                content, too_long = _up_to_a_long_line(whole[:end])
                yield Block(content=content, before=number)
                number += content.count(b"\n")
                if too_long or len(rest) > MAX_LINE_BYTES:
                    found = "a longer one"
                    log.add(f"{path}:{number + 1}", f"a line of at most {MAX_LINE_BYTES} bytes", found)
                    return
    except BROKEN as error:
        sort, remedy = mislabelled(path)
        reason = sort or str(error) or type(error).__name__
        expected = "a file that can be read to its end"
        log.add(f"{path}:{number + 1}", expected, reason, remedy or "Fetch or make it again.")


def _up_to_a_long_line(content: bytes) -> tuple[bytes, bool]:
    """The lines before one beyond the limit, and whether there is such a one."""
    if len(content) > MAX_LINE_BYTES:
        begin = 0
        for line in io.BytesIO(content):
            if len(line) > MAX_LINE_BYTES:
                return content[:begin], True
            begin += len(line)
    return content, False


def decoded(path: Path, block: Block, log: ProblemLog) -> list[str]:
    """A block's lines; one that is not UTF-8 is noted and goes on with replacement marks."""
    if b"\0" not in block.content:
        try:
            return list(io.StringIO(block.content.decode("utf-8"), newline="\n"))
        except UnicodeDecodeError:
            pass  # line by line, to name it
    lines = enumerate(io.BytesIO(block.content), block.before + 1)
    return [_text(line, f"{path}:{number}", log) for number, line in lines]


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
