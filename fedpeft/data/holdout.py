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
from collections.abc import Iterable, Mapping
from itertools import islice
from json.encoder import encode_basestring

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import BATCH_ROWS, Numbers, Record, Records
from fedpeft.data.tasks import detect
from fedpeft.errors import DataInvalid
from fedpeft.tasks import Convention

__all__ = ["content_ranks", "split_each", "split_holdout", "split_indices"]

Ranks = npt.NDArray[np.uint64]
"""A number a record: the first 64 bits of a hash of its content and the seed. Equal contents have equal ranks."""

Indices = npt.NDArray[np.intp]


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
    train, held_out = split_indices(records, content_ranks(records, seed), _share(holdout))
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
        parts = (_ranked(begun, map(_text_key, window)) for window in records.windows("text"))
    else:
        rows = iter(records.rows)
        windows = iter(lambda: list(islice(rows, BATCH_ROWS)), [])
        parts = (_ranked(begun, (content_key(row, convention) for row in window)) for window in windows)
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _ranked(begun: bytes, keys: Iterable[str]) -> Ranks:
    """The ranks of a few keys: the first 64 bits of each one's hash."""
    sha256 = hashlib.sha256
    # JSON may hold half a surrogate pair; it must not stop the split (``validate`` names such rows).
    digests = b"".join([sha256(begun + key.encode("utf-8", "surrogatepass")).digest() for key in keys])
    return np.frombuffer(digests, dtype=">u8")[::4].astype(np.uint64)


def split_indices(records: Records, ranks: Ranks, holdout: float) -> tuple[Indices, Indices]:
    """The indices of both sides, ascending; see ``split_holdout``."""
    if not len(records):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    # Distinct contents, ascending by rank, and which of them each record has.
    distinct, content = np.unique(ranks, return_inverse=True)
    held = _held_out(_classes(records, content, len(distinct)), holdout)[content]  # (n,)
    return np.flatnonzero(~held), np.flatnonzero(held)


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


def _text_key(text: object) -> str:
    if type(text) is str:
        return f'{{"text": {encode_basestring(" ".join(text.casefold().split()))}}}'
    return _CANONICAL({"text": _plain(text)})


def _classes(records: Records, content: Indices, distinct: int) -> Indices:
    """Each distinct content's class, as a number: the first by name where duplicates disagree."""
    codes: Numbers[str] = Numbers()
    if "label" in records.columns():
        names = map(str, records.values("label"))
        members = np.fromiter(map(codes.__getitem__, names), dtype=np.intp, count=len(records))
    else:
        members = np.full(len(records), codes[""], np.intp)
    by_name = np.empty(len(codes), np.intp)
    by_name[[codes[name] for name in sorted(codes)]] = np.arange(len(codes))
    classes = np.full(distinct, len(codes), dtype=np.intp)
    np.minimum.at(classes, content, by_name[members])
    return classes


def _held_out(classes: Indices, holdout: float) -> npt.NDArray[np.bool_]:
    """Which contents to hold out, shape (distinct,); ``classes`` are ascending by rank."""
    sizes = np.bincount(classes)
    grouped = np.argsort(classes, kind="stable")  # class by class, ascending by rank within
    within = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position = np.empty(len(classes))
    position[grouped] = (within + 0.5) / np.repeat(sizes, sizes)
    order = np.argsort(position, kind="stable")  # by rank where positions are equal
    wanted = min(max(round(holdout * len(order)), 1), max(len(order) - 1, 0))
    held = np.zeros(len(classes), dtype=np.bool_)
    held[order[:wanted]] = True
    return held


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode
