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
from collections.abc import Mapping

from fedpeft.data.records import Record, Records
from fedpeft.data.tasks import Convention, detect
from fedpeft.errors import DataInvalid

__all__ = ["content_key", "split_holdout"]


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
    keys = content_keys(records)
    held = _held_out(_classes(records, keys), holdout, seed)
    sides: tuple[list[int], list[int]] = ([], [])
    for i, key in enumerate(keys):
        sides[key in held].append(i)
    return records.select(sides[0]), records.select(sides[1])


def content_keys(records: Records) -> tuple[str, ...]:
    """``content_key`` of every record, by the convention that fits all of them."""
    try:
        convention = detect(records)
    except DataInvalid:
        convention = None
    return tuple(content_key(row, convention) for row in records.rows)


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
    return json.dumps(content, sort_keys=True, default=str, ensure_ascii=False)


def _plain(value: object) -> object:
    """Texts in one case and with single spaces, at any depth."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _classes(records: Records, keys: tuple[str, ...]) -> dict[str, str]:
    """Each distinct content's class: the first by name where duplicates disagree."""
    classes: dict[str, str] = {}
    for row, key in zip(records.rows, keys, strict=True):
        label = str(row.get("label", ""))
        classes[key] = min(label, classes.get(key, label))
    return classes


def _held_out(classes: dict[str, str], holdout: float, seed: int) -> set[str]:
    """The contents to hold out."""
    ranked = {key: _rank(key, seed) for key in classes}
    members: dict[str, list[str]] = {}
    for key in sorted(classes, key=ranked.__getitem__):
        members.setdefault(classes[key], []).append(key)
    position = {key: (i + 0.5) / len(keys) for keys in members.values() for i, key in enumerate(keys)}
    order = sorted(classes, key=lambda key: (position[key], ranked[key]))
    wanted = min(max(round(holdout * len(order)), 1), max(len(order) - 1, 0))
    return set(order[:wanted])


def _rank(key: str, seed: int) -> bytes:
    # JSON may hold half a surrogate pair; it must not stop the split (``validate`` names such rows).
    return hashlib.sha256(f"fedpeft/1 holdout {seed} {key}".encode("utf-8", "surrogatepass")).digest()
