"""The form of a record: a digest of its fields' names and types, which tells versions of fedpeft apart on a disk."""

import enum
import hashlib
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["FORM_SIZE", "form_of"]

FORM_SIZE = 8


_forms: dict[type, bytes] = {}


def form_of(cls: type) -> bytes:
    """Eight bytes that differ if a message's fields do, in name, type or order, or an enumeration's values; at any
    depth."""
    if cls not in _forms:
        _forms[cls] = hashlib.sha256(_spelled(cls).encode()).digest()[:FORM_SIZE]
    return _forms[cls]


def _spelled(kind: Any) -> str:
    """A field's type as text, with the fields of the records in it."""
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    if args := typing.get_args(kind):
        origin = "optional" if typing.get_origin(kind) in (types.UnionType, typing.Union) else "tuple"
        return f"{origin} {' '.join(_spelled(one) for one in args if one not in (Ellipsis, type(None)))}"
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return f"({', '.join(f'{field.name} {_spelled(hints[field.name])}' for field in fields(kind))})"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {' '.join(repr(one.value) for one in kind)}"
    return str(kind.__name__)
