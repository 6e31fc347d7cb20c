"""What an operation is given and what it may answer: the same from the command line and from the API."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from fedpeft.errors import ConfigInvalid
from fedpeft_server.admin.access import Role

__all__ = ["Asked", "Download", "Field", "NotThere", "Value", "checked"]

Value = str | int | bool


class NotThere(ConfigInvalid):
    """No such run, device, token or file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value that an operation takes.

    Args:
        kind: its type in JSON.
        required: whether it must be given.
        least, most: of an integer; of a string's length.
        pattern: what a string must match as a whole; empty: anything.
        choices: the strings that there are; empty: any.
        about: for the OpenAPI document.
    """

    kind: Literal["string", "integer", "boolean"] = "string"
    required: bool = False
    least: int = 0
    most: int = 200
    pattern: str = ""
    choices: tuple[str, ...] = ()
    about: str = ""

    def takes(self, value: object) -> bool:
        """Whether this value can be."""
        match self.kind:
            case "boolean":
                return isinstance(value, bool)
            case "integer":
                return type(value) is int and self.least <= value <= self.most
            case "string":
                return (
                    isinstance(value, str)
                    and self.least <= len(value) <= self.most
                    and (not self.pattern or re.fullmatch(self.pattern, value) is not None)
                    and (not self.choices or value in self.choices)
                )


def checked(fields: Mapping[str, Field], given: Mapping[str, object]) -> dict[str, Value]:
    """The values given, each what its field takes.

    Raises:
        ConfigInvalid: one that there is not, one missing, or one that cannot be.
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        if name not in fields or not fields[name].takes(value) or not isinstance(value, str | int | bool):
            wanted = ", ".join(f"{known} ({one.kind})" for known, one in fields.items()) or "none"
            raise ConfigInvalid(f"Expected fields {wanted}; found {name[:64]!r} that is none, or has another value.")
        found[name] = value
    if missing := [name for name, one in fields.items() if one.required and name not in found]:
        raise ConfigInvalid(f"Expected {', '.join(missing)}, found none.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request of somebody who may make it.

    Args:
        values: what was given, checked.
        by: who asks, for the audit log.
        role: what they may do.
        afar: whether they ask from another machine.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    by: str = "operator"
    role: Role = Role.ADMIN
    afar: bool = False

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(name, default)
        return value if isinstance(value, str) else default

    def number(self, name: str, default: int) -> int:
        """An integer."""
        value = self.values.get(name, default)
        return value if isinstance(value, int) else default

    def flag(self, name: str) -> bool:
        """A boolean, false by default."""
        return self.values.get(name) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file as an answer; whoever gets it closes it.

    Args:
        name: what to call it.
        open: opens it; raises ``NotThere`` when it is gone.
    """

    name: str
    open: Callable[[], BinaryIO]
