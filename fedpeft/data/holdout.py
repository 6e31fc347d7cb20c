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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from json.encoder import encode_basestring

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import BATCH_ROWS, Numbers, Record, Records
from fedpeft.data.targets import label_name
from fedpeft.data.tasks import detect
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

__all__ = ["Contents", "content_ranks", "contents_of", "contradictions", "split_each", "split_holdout", "split_indices"]

PIECE = 2**16

Ranks = npt.NDArray[np.uint64]
"""A number a record: the first 64 bits of a hash of its content and the seed. Equal contents have equal ranks."""

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Which records have the same content.

    Args:
        of: a number a record, shape (n,), int32: the place of its content among the distinct ones, ascending by rank.
        count: distinct contents.
    """

    of: npt.NDArray[np.int32]
    count: int


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
    train, held_out = split_indices(records, contents_of(content_ranks(records, seed)), _share(holdout))
    return records.select(train.tolist()), records.select(held_out.tolist())


def split_each(records: Records, holdout: float, seed: int) -> tuple[Records, Records]:
    """As ``split_holdout``, but no example's side depends on another's: of a few, all may fall on one side.

    Args:
        records: of one client.
        holdout: how likely an example is held out, 0 < holdout < 1.
        seed: the run's.

    Raises:
        DataInvalid: ``holdout`` is out of range.
    """
    held = content_ranks(records, seed) < np.uint64(min(int(_share(holdout) * 2.0**64), 2**64 - 1))  # (n,)
    return records.select(np.flatnonzero(~held).tolist()), records.select(np.flatnonzero(held).tolist())


def _share(holdout: float) -> float:
    if not 0 < holdout < 1:
        raise DataInvalid(f"Expected 0 < holdout={holdout} < 1; give the share to hold out, e.g. 0.2.")
    return holdout


def content_ranks(records: Records, seed: int) -> Ranks:
    """The rank of every record, shape (n,), by the convention that fits all of them."""
    try:
        convention = detect(records)
    except DataInvalid:
        convention = None
    begun = f"fedpeft/1 holdout {seed} ".encode()
    if convention is Convention.TEXT_LABEL:  # the same key as ``content_key`` makes, without a row in between
        parts = (_ranked(begun, _text_keys(window)) for window in records.windows("text"))
    else:
        rows = iter(records.rows)
        windows = iter(lambda: list(islice(rows, BATCH_ROWS)), [])
        parts = (_ranked(begun, (_bytes(content_key(row, convention)) for row in window)) for window in windows)
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _ranked(begun: bytes, keys: Iterable[bytes]) -> Ranks:
    """The ranks of a few keys: the first 64 bits of each one's hash."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(begun + key).digest() for key in keys])
    return np.frombuffer(digests, dtype=">u8")[::4].astype(np.uint64)


def _bytes(key: str) -> bytes:
    # JSON may hold half a surrogate pair; it must not stop the split (``validate`` names such rows).
    return key.encode("utf-8", "surrogatepass")


def contents_of(ranks: Ranks) -> Contents:
    """Which records have equal ranks."""
    order = np.argsort(ranks, kind="stable")  # (n,)
    ascending = ranks[order]
    begins = np.ones(len(ranks), np.bool_)  # where another content begins
    np.not_equal(ascending[1:], ascending[:-1], out=begins[1:])
    del ascending
    of = np.empty(len(ranks), np.int32)
    of[order] = np.cumsum(begins, dtype=np.int32) - 1
    return Contents(of=of, count=int(np.count_nonzero(begins)))


def split_indices(records: Records, contents: Contents, holdout: float) -> tuple[Indices, Indices]:
    """The indices of both sides, ascending; see ``split_holdout``."""
    if not len(records):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    held = _held_out(_classes(records, contents), holdout)[contents.of]  # (n,)
    return np.flatnonzero(~held), np.flatnonzero(held)


def contradictions(records: Records, contents: Contents) -> int:
    """How many contents occur with different labels."""
    codes: Numbers[str | None] = Numbers()
    of_text: dict[object, int] = {}
    labels = np.empty(len(records), np.int32)
    begin = 0
    for window in records.windows("label"):
        if set(map(type, window)) == {str}:
            of_text.update({text: codes[label_name(text)] for text in set(window) - of_text.keys()})
            labels[begin : begin + len(window)] = list(map(of_text.__getitem__, window))
        else:
            labels[begin : begin + len(window)] = [codes[label_name(value)] for value in window]
        begin += len(window)
    one = np.empty(contents.count, np.int32)
    one[contents.of] = labels  # of several the last
    differ = np.zeros(contents.count, np.bool_)
    differ[contents.of[labels != one[contents.of]]] = True
    return int(np.count_nonzero(differ))


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


def _classes(records: Records, contents: Contents) -> npt.NDArray[np.int32]:
    """Each distinct content's class, as a number: the first by name where duplicates disagree."""
    codes: Numbers[str] = Numbers()
    if "label" in records.columns():
        windows = (map(codes.__getitem__, map(str, window)) for window in records.windows("label"))
        members = np.fromiter(chain.from_iterable(windows), np.int32, len(records))
    else:
        members = np.full(len(records), codes[""], np.int32)
    by_name = np.empty(len(codes), np.int32)
    by_name[[codes[name] for name in sorted(codes)]] = np.arange(len(codes))
    classes = np.full(contents.count, len(codes), np.int32)
    np.minimum.at(classes, contents.of, by_name[members])
    return classes


def _held_out(classes: npt.NDArray[np.int32], holdout: float) -> npt.NDArray[np.bool_]:
    """Which contents to hold out, shape (distinct,); ``classes`` are ascending by rank.

    Those with the first positions, by rank where positions are equal.
    """
    sizes = np.bincount(classes)
    grouped = np.argsort(classes, kind="stable")  # class by class, ascending by rank within
    begins = np.cumsum(sizes) - sizes  # (classes,)
    position = np.empty(len(classes))
    for start in range(0, len(classes), PIECE):  # piece by piece: a few numbers a content are much of a large file
        some = grouped[start : start + PIECE]
        within = np.arange(start, start + len(some)) - begins[classes[some]]
        position[some] = (within + 0.5) / sizes[classes[some]]
    del grouped
    wanted = min(max(round(holdout * len(classes)), 1), max(len(classes) - 1, 0))
    held = np.zeros(len(classes), dtype=np.bool_)
    if wanted:
        last = np.partition(position, wanted - 1)[wanted - 1]
        np.less(position, last, out=held)
        held[np.flatnonzero(position == last)[: wanted - int(np.count_nonzero(held))]] = True
    return held


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode
