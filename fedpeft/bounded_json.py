"""One decoder for JSON that somebody else wrote: whatever it holds, a value within limits or a ``JsonRefused``.

``json.loads`` lets through what breaks its caller much later: integers of a thousand digits (``OverflowError`` in
``float()``, ``ValueError`` in ``str()``), ``1e999`` and ``NaN``, nesting that exhausts the stack of whoever walks it,
half a surrogate pair that no codec writes, a key twice of which the last wins. Here each is refused at the door.

Invariants: no other exception leaves ``loads`` (``MemoryError`` apart); a value that passes can be written again by
``json.dumps`` and encoded as UTF-8.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

__all__ = ["JsonLimits", "JsonRefused", "JsonValue", "loads"]

JsonValue = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None


class JsonRefused(ValueError):
    """The text is no JSON, or more than the limits allow; the message says which, without quoting long content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLimits:
    """What foreign JSON may be.

    Args:
        max_bytes: of the text, as UTF-8.
        max_depth: lists and objects inside each other; the outermost is 1.
        max_digits: of an integer. 19 digits fit a signed 64-bit integer but for the last tenth: enough for counts,
            sizes and nanoseconds, and exact ``float()`` and ``str()`` never fail on them.
        surrogates: whether half a surrogate pair is let through, for callers that name it themselves.
    """

    max_bytes: int = 2**20
    max_depth: int = 32
    max_digits: int = 19
    surrogates: bool = False


DEFAULT_LIMITS = JsonLimits()


def loads(text: str | bytes, limits: JsonLimits = DEFAULT_LIMITS) -> JsonValue:
    """The value of a JSON text.

    Args:
        text: as it came; bytes are UTF-8, with or without a byte order mark.
        limits: what is taken.

    Raises:
        JsonRefused: not JSON (RFC 8259: no NaN, no infinity), a key twice, or beyond a limit.

    Example:
        >>> loads(b'{"rounds": 3}')
        {'rounds': 3}
        >>> loads("[1e999]")
        Traceback (most recent call last):
            ...
        fedpeft.bounded_json.JsonRefused: a number beyond the range of a double
    """
    if len(text) > limits.max_bytes:
        raise JsonRefused(f"more than {limits.max_bytes} bytes")
    decoded = _decoded(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")

    try:
        value: JsonValue = _decoder(limits.max_digits).decode(decoded)
    except RecursionError:
        raise JsonRefused("nesting too deep") from None
    except json.JSONDecodeError as error:
        raise JsonRefused(_reason(error, decoded)) from None
    # Counting brackets first spares the walk for what is flat, which nearly all is.
    if decoded.count("[") + decoded.count("{") > limits.max_depth and _too_deep(value, limits.max_depth):
        raise JsonRefused("nesting too deep")
    if not limits.surrogates and "\\u" in decoded and not _encodable(value):
        raise JsonRefused("half a surrogate pair")
    return value


@functools.lru_cache
def _decoder(max_digits: int) -> json.JSONDecoder:
    """Made once: a decoder with hooks takes longer to build than a line to parse."""

    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > max_digits:
            raise JsonRefused(f"an integer of {len(digits.lstrip('-'))} digits")
        return int(digits)

    return json.JSONDecoder(parse_int=integer, parse_float=_float, parse_constant=_constant, object_pairs_hook=_object)


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonRefused(f"byte 0x{text[error.start]:02x} at position {error.start}, which is not UTF-8") from None


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonRefused("a number beyond the range of a double")
    return value


def _constant(name: str) -> NoReturn:
    raise JsonRefused(f"{name}, which is not JSON")


def _object(pairs: Sequence[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonRefused(f"the key {twice!r:.40} twice")
    return made


def _reason(error: json.JSONDecodeError, text: str) -> str:
    """What is wrong and where; a line number only where there are lines to count."""
    what = error.msg[:1].lower() + error.msg[1:]
    if error.msg == "Extra data":
        what = "more after the first value"
    if error.pos >= len(text.rstrip()):
        return f"an end too early: {what}"
    place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
    return f"{what} at {place}"


def _too_deep(value: JsonValue, limit: int) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(limit + 1):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: JsonValue) -> Sequence[JsonValue]:
    """What a container holds; a container without content counts as a level of its own through ``None``."""
    match value:
        case dict():
            return [*value.values()] or [None]
        case list():
            return value or [None]
        case _:
            return ()


def _encodable(value: JsonValue) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
