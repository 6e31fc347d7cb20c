"""pydantic's findings in this project's words: where, what was expected, what was found, what to do."""

import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedpeft.config.model import RunConfig

__all__ = ["Fault", "Location", "explain", "field_at", "key_of", "section_of", "sections_in", "shown", "value_at"]

Location = tuple[str | int, ...]
"""A path into the document: ("device", 0, "rank")."""

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_attributes_type": "a table",
    "model_type": "a table",
    "path_type": "a path in quotes",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text matching {pattern}",
    "too_short": "at least {min_length} in the list",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One value that cannot be what it is.

    Args:
        location: the path into the document; for a missing key, where it should be.
        expected: what would have been right.
        found: what is there.
        remedy: what to do.
        kind: whether the key is ``unknown``, ``missing``, or its value ``wrong``.
    """

    location: Location
    expected: str
    found: str
    remedy: str
    kind: typing.Literal["unknown", "missing", "wrong"]


def explain(error: ValidationError, document: dict[str, object]) -> tuple[Fault, ...]:
    """One fault a place in the document, in document order of the model; alternatives joined by "or"."""
    grouped: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        kind = detail["type"]
        held = value_at(document, detail["loc"])
        if kind == "too_short" and isinstance(held, list) and len(held) >= detail.get("ctx", {}).get("min_length", 0):
            continue  # pydantic counts the valid entries; the others have faults of their own
        location = detail["loc"] if kind in {"missing", "extra_forbidden"} else _within(document, detail["loc"])
        grouped.setdefault(location, []).append(detail)
    return tuple(_fault(location, details, document) for location, details in grouped.items())


def key_of(location: Location) -> str:
    """The location as a user writes it.

    Example:
        >>> key_of(("device", 0, "rank"))
        'device[0].rank'
    """
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: object) -> str:
    """A value as TOML would write it, cut at 60 characters."""
    if isinstance(value, float):
        return repr(value)
    text = "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def value_at(document: object, location: Location) -> object:
    """What the document holds there; None when nothing does."""
    for part in location:
        if not _holds(document, part):
            return None
        document = document[part]  # type: ignore[index]
    return document


def section_of(location: Location) -> type[BaseModel] | None:
    """The section class whose keys live at ``location``; None when that is not a section."""
    section: type[BaseModel] | None = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        section = next(sections_in(section.model_fields[part].annotation), None)
    return section


def field_at(location: Location) -> FieldInfo | None:
    """The field that a location names, indices into its list left out."""
    names = [part for part in location if isinstance(part, str)]
    section = section_of(tuple(names[:-1])) if names else None
    return section.model_fields.get(names[-1]) if section else None


def _fault(location: Location, details: Sequence[ErrorDetails], document: dict[str, object]) -> Fault:
    kind = details[0]["type"]
    field = field_at(location)
    about = (field.description or "") if field else ""
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "missing":
        section = section_of(location)
        expected = "a table" if section and not isinstance(location[-1], int) else "a value"
        return Fault(location=location, expected=expected, found="nothing", remedy=about, kind="missing")
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    return Fault(
        location=location, expected=expected, found=shown(value_at(document, location)), remedy=about, kind="wrong"
    )


def _expected(detail: ErrorDetails) -> str:
    template = _EXPECTED.get(detail["type"])
    if template is None:
        return f"a valid value ({detail['msg']})"
    limits = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in detail.get("ctx", {}).items()
    }
    return template.format(**limits).replace("'", '"')


def _unknown(location: Location) -> Fault:
    section, name = section_of(location[:-1]), str(location[-1])
    keys = list(section.model_fields) if section else []
    near = difflib.get_close_matches(name, keys, n=1)
    elsewhere = _keys_by_last_name().get(name, ())
    if near:
        remedy = f"Did you mean `{near[0]}`?"
    elif elsewhere:
        remedy = f"Did you mean `{'` or `'.join(elsewhere)}`?"
    else:
        remedy = ""
    return Fault(
        location=location, expected=f"one of {', '.join(keys)}", found="an unknown key", remedy=remedy, kind="unknown"
    )


@functools.cache
def _keys_by_last_name() -> dict[str, list[str]]:
    """Every key there is, by what stands after its last dot: walked once, however many keys are unknown."""
    found: dict[str, list[str]] = {}
    for key in _every_key():
        found.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    return found


def _every_key(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_in(field.annotation):
            yield from _every_key(inner, f"{prefix}{name}.")


def sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The section classes in an annotation such as ``Lora | None`` or ``tuple[Device, ...]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from sections_in(argument)


def _within(document: object, location: Location) -> Location:
    """The part of a pydantic location that exists in the document: union members are not keys."""
    for depth in range(len(location)):
        if not _holds(value_at(document, location[:depth]), location[depth]):
            return location[:depth]
    return location


def _holds(document: object, part: str | int) -> bool:
    if isinstance(document, list):
        return isinstance(part, int) and part < len(document)
    return isinstance(document, dict) and part in document
