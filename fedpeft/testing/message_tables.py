"""The fields of every message, as tables for docs/protocol.md: written from the classes, so that they cannot differ.

    python -m fedpeft.testing.message_tables        rewrites the part of docs/protocol.md between the markers

Only what travels between a coordinator and its devices in a round; in the notation of the document's "Encoding".
"""

import enum
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from fedpeft.round import messages as round_messages
from fedpeft.secagg import messages, offer

__all__ = ["BEGIN", "END", "message_tables", "written_into"]

BEGIN, END = "<!-- message tables: begin (make docs) -->", "<!-- message tables: end -->"
DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def message_tables() -> str:
    """One table per message, nested record and enumeration, in the order in which they are first needed."""
    parts: list[str] = []
    seen: set[type] = set()
    for kind, heading in _roots():
        parts.extend(_described(kind, heading, seen))
    return "\n".join(parts)


def written_into(text: str) -> str:
    """The document with the tables between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{message_tables()}\n{END}{after}"


def _roots() -> Iterator[tuple[type, str]]:
    from fedpeft.wire.codec import tag_of

    for module in (round_messages, offer, messages):
        for name in vars(module):
            kind = getattr(module, name)
            if isinstance(kind, type) and kind.__module__ == module.__name__ and is_dataclass(kind):
                tag = tag_of(kind)
                if tag is not None:
                    yield kind, f"{kind.__name__} ({tag:#06x})"


def _described(kind: type, heading: str, seen: set[type]) -> Iterator[str]:
    if kind in seen:
        return
    seen.add(kind)
    if issubclass(kind, enum.Enum):
        yield f"**{heading}**: " + ", ".join(f"`{item.value}`" for item in kind) + "\n"
        return
    hints = typing.get_type_hints(kind)
    rows = [(field.name, *_spelled(hints[field.name])) for field in fields(cast("Any", kind))]
    yield f"**{heading}**: " + "; ".join(f"`{name}` {spelling}" for name, spelling, _ in rows) + "\n"
    for _, _, nested in rows:
        if nested is not None:
            yield from _described(nested, nested.__name__, seen)


def _spelled(hint: object) -> tuple[str, type | None]:
    """A field's type in the words of "Encoding", and the class that it refers to."""
    hint = getattr(hint, "__supertype__", hint)  # a NewType is its base
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner, nested = _spelled(arguments[0])
        return f"tuple of {inner}", nested
    if origin in (types.UnionType, typing.Union):
        inner, nested = _spelled(next(item for item in arguments if item is not type(None)))
        return f"optional {inner}", nested
    if isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, enum.Enum)):
        return hint.__name__, hint
    return getattr(hint, "__name__", str(hint)), None


if __name__ == "__main__":
    DOCUMENT.write_text(written_into(DOCUMENT.read_text()))
