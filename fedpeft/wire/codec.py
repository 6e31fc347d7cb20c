"""The wire codec: frozen dataclasses to bytes and back, strictly (docs/protocol.md, "Encoding").

A message is ``"FP" | version u8 | tag u16 | body length u64 | body``; the body is the fields in order of
declaration, big-endian. Every message has exactly one encoding: decoding anything else, including one
byte too many, raises. Nothing is allocated from a declared length before the bytes are known to be there.

Field types: int (u64), bool, float (IEEE binary64), str, bytes (u64 length first), an Enum (as its value),
``tuple[T, ...]`` (u32 count first), ``T | None`` (one presence byte), a nested dataclass (its fields), and
NewTypes of these.

A message that is only ever kept on a disk (``kept=True``) has before its fields eight bytes of a digest of their names
and types: a file of another version of fedpeft is refused as one, whatever its bytes happen to mean.
"""

import enum
import math
import struct
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from fedpeft.errors import SpecMismatch
from fedpeft.wire.form import FORM_SIZE, form_of

__all__ = ["OtherVersion", "WireError", "decode", "encode", "message", "tag_of"]

T = TypeVar("T")

MAGIC = b"FP"
VERSION = 3
HEADER = struct.Struct(">2sBHQ")
U64, U32, F64 = struct.Struct(">Q"), struct.Struct(">I"), struct.Struct(">d")

_Write = Callable[[Any, bytearray], None]
_Read = Callable[["_Reader"], Any]

_tags: dict[type, int] = {}
_classes: dict[int, type] = {}
_kept: set[type] = set()
_codecs: dict[Any, tuple[_Write, _Read]] = {}


class WireError(SpecMismatch):
    """Bytes that are not the one encoding of an expected message."""


class OtherVersion(WireError):
    """A message of another version of the format: a peer, or a file, of another version of fedpeft."""


def message(tag: int, *, kept: bool = False) -> Callable[[type[T]], type[T]]:
    """Class decorator: makes a frozen dataclass a message with this tag (0..65535, unique).

    Args:
        kept: it never travels, and outlives the process that wrote it, which may be followed by another version.
    """

    def register(cls: type[T]) -> type[T]:
        previous = _classes.get(tag)
        if previous is not None and previous.__qualname__ != cls.__qualname__:
            raise TypeError(f"Expected a free tag for {cls.__name__}, found {tag:#06x} taken by {previous.__name__}.")
        _tags[cls] = tag
        _classes[tag] = cls
        if kept:
            _kept.add(cls)
        return cls

    return register


def tag_of(cls: type) -> int | None:
    """A message class's tag; None if it is none."""
    return _tags.get(cls)


def kind_of(payload: bytes | memoryview) -> type | None:
    """The class that a payload's header names; None if it is none. Nothing else of it is read, or checked."""
    view = memoryview(payload)
    return _classes.get(HEADER.unpack_from(view)[2]) if len(view) >= HEADER.size else None


def encode(item: object) -> bytes:
    """The one encoding of a message.

    Raises:
        WireError: a field does not hold what its type says, e.g. a negative int.
        TypeError: the class is not a message.
    """
    tag = _tags.get(type(item))
    if tag is None:
        raise TypeError(f"Expected a class marked with @message, found {type(item).__name__}.")
    out = bytearray(HEADER.size)
    if type(item) in _kept:
        out += form_of(type(item))
    _codec(type(item))[0](item, out)
    HEADER.pack_into(out, 0, MAGIC, VERSION, tag, len(out) - HEADER.size)
    return bytes(out)


@typing.overload
def decode(payload: bytes | memoryview, expected: type[T]) -> T: ...
@typing.overload
def decode(payload: bytes | memoryview, expected: tuple[type, ...]) -> object: ...
def decode(payload: bytes | memoryview, expected: type | tuple[type, ...]) -> object:
    """The message that these bytes encode, if it is of an expected class.

    Raises:
        WireError: wrong magic, version (``OtherVersion``), class or length, bytes left over, a value out of range.
    """
    view = memoryview(payload)
    if len(view) < HEADER.size:
        raise WireError(f"Expected a message of at least {HEADER.size} bytes, found {len(view)}.")
    magic, version, tag, length = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise WireError(f"Expected wire format {MAGIC!r}, found {magic!r}.")
    if version != VERSION:
        raise OtherVersion(
            f"Expected version {VERSION} of the wire format, found version {version}; update fedpeft on the older side."
        )
    if length != len(view) - HEADER.size:
        raise WireError(f"Expected a body of {length} bytes, found {len(view) - HEADER.size}.")
    wanted = expected if isinstance(expected, tuple) else (expected,)
    cls = _classes.get(tag)
    if cls is None or cls not in wanted:
        names = " or ".join(c.__name__ for c in wanted)
        raise WireError(f"Expected {names}, found {cls.__name__ if cls else f'unknown tag {tag:#06x}'}.")
    reader = _Reader(view, HEADER.size)
    if cls in _kept and reader.take(min(FORM_SIZE, reader.left())) != form_of(cls):
        raise OtherVersion(f"Expected {cls.__name__} as this version of fedpeft keeps it, found another version's.")
    item = _codec(cls)[1](reader)
    if reader.offset != len(view):
        raise WireError(f"{cls.__name__}: {len(view) - reader.offset} bytes left over.")
    return cast("object", item)


class _Reader:
    """A cursor over the payload that refuses to read past its end."""

    __slots__ = ("offset", "view")

    def __init__(self, view: memoryview, offset: int) -> None:
        self.view, self.offset = view, offset

    def take(self, size: int) -> memoryview:
        end = self.offset + size
        if end > len(self.view):
            raise WireError(f"Expected {size} more bytes, found {len(self.view) - self.offset}.")
        piece = self.view[self.offset : end]
        self.offset = end
        return piece

    def left(self) -> int:
        return len(self.view) - self.offset


def _codec(kind: Any) -> tuple[_Write, _Read]:
    if kind not in _codecs:
        _codecs[kind] = _build(kind)
    return _codecs[kind]


def _build(kind: Any) -> tuple[_Write, _Read]:
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _sequence(_codec(args[0]))
    if origin in (types.UnionType, typing.Union) and len(args) == 2 and type(None) in args:
        return _optional(_codec(args[0] if args[1] is type(None) else args[1]))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind)
    raise TypeError(f"{kind!r} cannot travel: see the field types in fedpeft.wire.codec.")


def _record(cls: type) -> tuple[_Write, _Read]:
    hints = typing.get_type_hints(cls)
    codecs = [(field.name, *_codec(hints[field.name])) for field in fields(cls)]

    def write(item: Any, out: bytearray) -> None:
        if type(item) is not cls:
            raise WireError(f"Expected {cls.__name__}, found {type(item).__name__}.")
        for name, put, _ in codecs:
            try:
                put(getattr(item, name), out)
            except (struct.error, TypeError, UnicodeEncodeError) as error:
                raise WireError(f"{cls.__name__}.{name}: cannot be encoded: {error}.") from error

    def read(reader: _Reader) -> Any:
        values = {name: get(reader) for name, _, get in codecs}
        try:
            return cls(**values)
        except ValueError as error:
            raise WireError(f"{cls.__name__}: {error}") from error

    return write, read


def _sequence(element: tuple[_Write, _Read]) -> tuple[_Write, _Read]:
    put, get = element

    def write(items: Any, out: bytearray) -> None:
        out += U32.pack(len(items))
        for item in items:
            put(item, out)

    def read(reader: _Reader) -> Any:
        (count,) = U32.unpack(reader.take(U32.size))
        if count > reader.left():
            raise WireError(f"Expected {count} elements, found only {reader.left()} bytes.")
        return tuple(get(reader) for _ in range(count))

    return write, read


def _optional(element: tuple[_Write, _Read]) -> tuple[_Write, _Read]:
    put, get = element

    def write(item: Any, out: bytearray) -> None:
        out.append(item is not None)
        if item is not None:
            put(item, out)

    def read(reader: _Reader) -> Any:
        return get(reader) if _read_bool(reader) else None

    return write, read


def _enum(cls: type[enum.Enum]) -> tuple[_Write, _Read]:
    put, get = _codec(type(next(iter(cls)).value))

    def write(item: Any, out: bytearray) -> None:
        put(cls(item).value, out)

    def read(reader: _Reader) -> Any:
        value = get(reader)
        try:
            return cls(value)
        except ValueError as error:
            raise WireError(f"Expected a {cls.__name__}, found {value!r}.") from error

    return write, read


def _write_bytes(item: bytes | bytearray | memoryview, out: bytearray) -> None:
    out += U64.pack(len(item))
    out += item


def _read_bytes(reader: _Reader) -> bytes:
    (size,) = U64.unpack(reader.take(U64.size))
    return bytes(reader.take(size))


def _read_str(reader: _Reader) -> str:
    try:
        return _read_bytes(reader).decode()
    except UnicodeDecodeError as error:
        raise WireError(f"Expected UTF-8: {error}.") from error


def _read_bool(reader: _Reader) -> bool:
    value = reader.take(1)[0]
    if value > 1:
        raise WireError(f"Expected a boolean of 0 or 1, found {value}.")
    return bool(value)


def _read_float(reader: _Reader) -> float:
    (value,) = F64.unpack(reader.take(F64.size))
    if not math.isfinite(value):
        raise WireError(f"Expected a finite number, found {value}.")
    return float(value)


def _write_float(item: float, out: bytearray) -> None:
    if not math.isfinite(item):
        raise WireError(f"Expected a finite number, found {item}.")
    out += F64.pack(item)


_SIMPLE: dict[Any, tuple[_Write, _Read]] = {
    int: (lambda item, out: out.extend(U64.pack(item)), lambda reader: U64.unpack(reader.take(U64.size))[0]),
    bool: (lambda item, out: out.append(bool(item)), _read_bool),
    float: (_write_float, _read_float),
    str: (lambda item, out: _write_bytes(item.encode(), out), _read_str),
    bytes: (_write_bytes, _read_bytes),
}
