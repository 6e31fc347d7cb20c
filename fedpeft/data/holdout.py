"""The held-out split of one client's examples: by content, so that it leaks nothing and needs no order.

Guarantees:
    the two sides are disjoint and complete;
    duplicates fall on one side;
    the order of the records does not matter;
    neither side is empty when there are two distinct examples (``split_holdout``);
    the same records, share and seed give the same split on every machine;
    one example more or less moves no other (``split_each``).

Two ways. ``split_holdout`` ranks the examples of each class by a hash of seed and content; an example's position is
its rank within its class, scaled to 0..1, and the first positions over all classes are held out. So each class gives
about its share, and a class with a single example keeps it for training; but an example that comes or goes moves
others over the line. Under example-level privacy, whose promise is about exactly that one example, ``split_each``
decides of every example by its own hash.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring

import numpy as np
import numpy.typing as npt

from fedpeft.data.contents import Codes, Division, Ranks, divide
from fedpeft.data.records import BATCH_ROWS, Numbers, Record, Records
from fedpeft.data.targets import label_name
from fedpeft.data.tasks import detect
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

__all__ = ["divided", "split_each", "split_holdout"]

PIECE = 2**16


def split_holdout(records: Records, holdout: float, seed: int) -> tuple[Records, Records]:
    """Split into ``(train, held_out)``, each in the order of ``records``.

    Args:
        records: of one client.
        holdout: share of the distinct examples to hold out, 0 < holdout < 1; rounded, at least one.
        seed: the run's.

    Returns:
        Both sides. Fewer than two distinct examples are all for training.

    Raises:
        DataInvalid: ``holdout`` is out of range.
    """
    return _sides(records, divided(records, _share(holdout), seed).held)


def split_each(records: Records, holdout: float, seed: int) -> tuple[Records, Records]:
    """As ``split_holdout``, but no example's side depends on another's: of a few, all may fall on one side.

    Args:
        records: of one client.
        holdout: how likely an example is held out, 0 < holdout < 1.
        seed: the run's.

    Raises:
        DataInvalid: ``holdout`` is out of range.
    """
    limit = np.uint64(min(int(_share(holdout) * 2.0**64), 2**64 - 1))
    return _sides(records, np.concatenate([np.zeros(0, np.bool_), *(part < limit for part in _ranks(records, seed))]))


def _sides(records: Records, held: npt.NDArray[np.bool_]) -> tuple[Records, Records]:
    return records.select(np.flatnonzero(~held)), records.select(np.flatnonzero(held))


def _share(holdout: float) -> float:
    if not 0 < holdout < 1:
        raise DataInvalid(f"Expected 0 < holdout={holdout} < 1; give the share to hold out, e.g. 0.2.")
    return holdout


def _ranks(records: Records, seed: int) -> Iterator[Ranks]:
    """The rank of every record by the convention that fits all of them, some at a time."""
    try:
        convention = detect(records)
    except DataInvalid:
        convention = None
    begun = f"fedpeft/1 holdout {seed} ".encode()
    if convention is Convention.TEXT_LABEL:  # the same key as ``content_key`` makes, without a row in between
        yield from (_ranked(begun, _text_keys(window)) for window in records.windows("text"))
        return
    rows = iter(records.rows)
    while window := list(islice(rows, BATCH_ROWS)):
        yield _ranked(begun, (_bytes(content_key(row, convention)) for row in window))


def _ranked(begun: bytes, keys: Iterable[bytes]) -> Ranks:
    """The ranks of a few keys: the first 64 bits of each one's hash."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(begun + key).digest() for key in keys])
    return np.frombuffer(digests, dtype=">u8")[::4].astype(np.uint64)


def _bytes(key: str) -> bytes:
    # JSON may hold half a surrogate pair; it must not stop the split (``validate`` names such rows).
    return key.encode("utf-8", "surrogatepass")


def divided(records: Records, holdout: float, seed: int) -> Division:
    """Both sides of ``split_holdout``, and what was found on the way."""
    labels = _Labels(records)
    return divide(len(records), _with_codes(_ranks(records, seed), labels), labels.tables, holdout)


def _with_codes(ranks: Iterator[Ranks], labels: "_Labels") -> Iterator[tuple[Ranks, Codes]]:
    """Ranks and the codes of the same records' labels, whatever the windows of both."""
    codes = np.zeros(0, np.uint32)
    for some in ranks:
        while len(codes) < len(some):
            codes = np.concatenate([codes, next(labels.codes)])
        yield some, codes[: len(some)]
        codes = codes[len(some) :]


class _Labels:
    """A number for each label, whatever kind it is of."""

    def __init__(self, records: Records) -> None:
        self._numbers: Numbers[tuple[str, str | None]] = Numbers()
        self._of_text: dict[object, int] = {}
        there = "label" in records.columns()
        self.codes = map(self._codes, records.windows("label")) if there else _alike(self._numbers, len(records))

    def _codes(self, window: list[object]) -> Codes:
        if set(map(type, window)) == {str}:
            self._of_text.update({text: self._code(text) for text in set(window) - self._of_text.keys()})
            return np.array([self._of_text[text] for text in window], np.uint32)
        return np.array([self._code(value) for value in window], np.uint32)

    def _code(self, value: object) -> int:
        return self._numbers[str(value), label_name(value)]

    def tables(self) -> tuple[Codes, Codes]:
        """For each number its class, ascending by the label's text, and its name's number."""
        groups = {text: number for number, text in enumerate(sorted({text for text, _ in self._numbers}))}
        names: Numbers[str | None] = Numbers()
        group_of = np.array([groups[text] for text, _ in self._numbers], np.uint32)
        return group_of, np.array([names[name] for _, name in self._numbers], np.uint32)


def _alike(numbers: Numbers[tuple[str, str | None]], count: int) -> Iterator[Codes]:
    """Records without a label: all are of one class."""
    number = numbers["", None]
    return (np.full(min(PIECE, count - start), number, np.uint32) for start in range(0, count, PIECE))


def content_key(row: Record, convention: Convention | None) -> str:
    """What makes an example a duplicate of another: its text columns, whatever their case and white space.

    The label is left out: one text with two labels on two sides would still leak.
    """
    columns: tuple[str, ...] = tuple(row) if convention is None else convention.asked
    if convention is Convention.ALPACA:
        columns = ("instruction", "input", "output")
    content = {column: _plain(row.get(column)) for column in columns}
    return _CANONICAL(content)


def _plain(value: object) -> object:
    """Texts in one case and with single spaces, at any depth."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _text_key(text: object) -> bytes:
    if type(text) is str:
        return _bytes(f'{{"text": {encode_basestring(" ".join(text.casefold().split()))}}}')
    return _bytes(_CANONICAL({"text": _plain(text)}))


_ONE_CASE = bytes(
    ord(" ") if chr(code).isspace() else ord(chr(code).casefold()) if code < 128 else code for code in range(256)
)
_ESCAPED = bytes(code for code in range(1, 32) if not chr(code).isspace())
"""Control characters that are no white space: JSON writes them as escapes. NUL is the mark between texts."""


def _text_keys(texts: Sequence[object]) -> list[bytes]:
    """As ``_text_key`` of each; those in ASCII all at once."""
    usual = [type(text) is str and text.isascii() and "\0" not in text for text in texts]
    joined = "\0".join([text for text, plain in zip(texts, usual, strict=True) if plain]).encode()  # type: ignore[misc]
    if len(joined.translate(None, _ESCAPED)) < len(joined) or not any(usual):
        return [_text_key(text) for text in texts]
    joined = joined.translate(_ONE_CASE)
    while b"  " in joined:
        joined = joined.replace(b"  ", b" ")
    joined = joined.replace(b"\0 ", b"\0").replace(b" \0", b"\0").strip(b" ")
    joined = joined.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    quick = iter((b'{"text": "' + joined.replace(b"\0", b'"}\0{"text": "') + b'"}').split(b"\0"))
    return [next(quick) if plain else _text_key(text) for text, plain in zip(texts, usual, strict=True)]


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode
