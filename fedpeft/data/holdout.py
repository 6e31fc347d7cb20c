"""The held-out split of one client's examples: by content, so that it leaks nothing and needs no order.

Guarantees:
    the two sides are disjoint and complete;
    duplicates fall on one side;
    the order of the records does not matter;
    neither side is empty when there are two distinct examples;
    the same records, share and seed give the same split on every machine.

Within each class examples are ranked by a hash of seed and content; an example's position is its rank
within its class, scaled to 0..1, and the first positions over all classes are held out. So each class gives
about its share, and a class with a single example keeps it for training.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from fedpeft.data.records import Record, Records
from fedpeft.data.tasks import Convention, detect
from fedpeft.errors import DataInvalid

__all__ = ["content_ranks", "split_holdout", "split_indices"]

Ranks = npt.NDArray[np.bytes_]
"""32 bytes a record: a hash of its content and the seed. Equal contents have equal ranks."""


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
    if not 0 < holdout < 1:
        raise DataInvalid(f"Expected 0 < holdout={holdout} < 1; give the share to hold out, e.g. 0.2.")
    train, held_out = split_indices(records, content_ranks(records, seed), holdout)
    return records.select(train), records.select(held_out)


def content_ranks(records: Records, seed: int) -> Ranks:
    """The rank of every record, shape (n,), by the convention that fits all of them."""
    try:
        convention = detect(records)
    except DataInvalid:
        convention = None
    if convention is Convention.TEXT_LABEL:  # the same key as ``content_key`` makes, without a row in between
        keys = (_CANONICAL({"text": _plain(text)}) for text in records.values("text"))
    else:
        keys = (content_key(row, convention) for row in records.rows)
    digests = (_rank(key, seed) for key in keys)
    return np.fromiter(digests, dtype="S32", count=len(records))


def split_indices(records: Records, ranks: Ranks, holdout: float) -> tuple[list[int], list[int]]:
    """The indices of both sides, ascending; see ``split_holdout``."""
    if not len(records):
        return [], []
    # Distinct contents, ascending by rank, and which of them each record has.
    distinct, content = np.unique(ranks, return_inverse=True)
    held = _held_out(_classes(records, content, len(distinct)), holdout)[content]  # (n,)
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def content_key(row: Record, convention: Convention | None) -> str:
    """What makes an example a duplicate of another: its text columns, whatever their case and white space.

    The label is left out: one text with two labels on two sides would still leak.
    """
    columns: tuple[str, ...] = tuple(row) if convention is None else convention.columns
    if convention is Convention.TEXT_LABEL:
        columns = ("text",)
    elif convention is Convention.ALPACA:
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


def _classes(records: Records, content: npt.NDArray[np.intp], distinct: int) -> Sequence[str]:
    """Each distinct content's class: the first by name where duplicates disagree."""
    classes: list[str | None] = [None] * distinct
    labels = records.values("label") if "label" in records.columns() else repeat("", len(records))
    for value, index in zip(labels, content.tolist(), strict=True):
        label = sys.intern(str(value))
        known = classes[index]
        classes[index] = label if known is None else min(label, known)
    return [name or "" for name in classes]


def _held_out(classes: Sequence[str], holdout: float) -> npt.NDArray[np.bool_]:
    """Which contents to hold out, shape (distinct,); ``classes`` are ascending by rank."""
    codes: dict[str, int] = {}
    members = np.fromiter((codes.setdefault(name, len(codes)) for name in classes), dtype=np.int64, count=len(classes))
    sizes = np.bincount(members)
    grouped = np.argsort(members, kind="stable")  # class by class, ascending by rank within
    within = np.arange(len(members)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position = np.empty(len(members))
    position[grouped] = (within + 0.5) / np.repeat(sizes, sizes)
    order = np.argsort(position, kind="stable")  # by rank where positions are equal
    wanted = min(max(round(holdout * len(order)), 1), max(len(order) - 1, 0))
    held = np.zeros(len(classes), dtype=np.bool_)
    held[order[:wanted]] = True
    return held


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


def _rank(key: str, seed: int) -> bytes:
    # JSON may hold half a surrogate pair; it must not stop the split (``validate`` names such rows).
    return hashlib.sha256(f"fedpeft/1 holdout {seed} {key}".encode("utf-8", "surrogatepass")).digest()
