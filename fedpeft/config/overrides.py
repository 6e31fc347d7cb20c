"""`--set key.path=value`: changes to a document before it is checked, so an override is checked like the file."""

import re
import tomllib
from collections.abc import Sequence

from fedpeft.config.explain import Location
from fedpeft.errors import Problem

__all__ = ["MAX_DEPTH", "apply_overrides"]

MAX_DEPTH = 16
"""Of keys inside tables, and of lists inside lists: no configuration comes near."""

_BARE = re.compile(r"[^\s\"'\[{][^\n]*")
"""Text that a shell user writes without TOML's quotes: `--set train.decay=cosine`."""


def apply_overrides(document: dict[str, object], overrides: Sequence[str]) -> tuple[list[Problem], list[Location]]:
    """Changes ``document`` in place.

    Args:
        document: a TOML document.
        overrides: ``key.path=value``; the value in TOML, or bare text. A number in the path is the place
            in a list, from 0: ``device.1.rank=4``.

    Returns:
        The problems of overrides that could not be applied, and the locations of those that were.
    """
    problems: list[Problem] = []
    locations: list[Location] = []
    for override in overrides:
        path, separator, text = override.partition("=")
        parts = path.strip().split(".")
        if not separator or len(parts) > MAX_DEPTH or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
            problems.append(
                Problem(
                    where=f"--set {override[:80]}",
                    expected="key.path=value",
                    found=f'"{override[:80]}"',
                    remedy="E.g. --set rounds.count=3.",
                )
            )
            continue
        try:
            value = _value(text.strip())
            locations.append(_put(document, parts, value))
        except _Refused as refused:
            problems.append(Problem(where=f"--set {path.strip()}", expected=refused.expected, found=refused.found))
    return problems, locations


class _Refused(Exception):
    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected)
        self.expected, self.found = expected, found


def _value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (RecursionError, ValueError) as error:
        if not isinstance(error, tomllib.TOMLDecodeError):
            raise _Refused("a TOML value", f'"{text[:40]}..." ({str(error)[:60]})') from error
        if _BARE.fullmatch(text):
            return text
        raise _Refused("a TOML value", f'"{text}" ({error})') from error
    if list(parsed) != ["value"]:  # a newline in the text began another key
        raise _Refused("one TOML value", f'"{text}"')
    return parsed["value"]


def _put(document: dict[str, object], parts: Sequence[str], value: object) -> Location:
    holder: object = document
    path: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(holder, dict):
            path.append(part)
            if last:
                holder[part] = value
            else:
                holder = holder.setdefault(part, {})
        elif isinstance(holder, list):
            if not part.isdecimal() or int(part) >= len(holder):
                raise _Refused(f"a place from 0 to {len(holder) - 1} in {'.'.join(parts[:depth])}", f'"{part}"')
            path.append(int(part))
            if last:
                holder[int(part)] = value
            else:
                holder = holder[int(part)]
        else:
            raise _Refused(f"a table at {'.'.join(parts[:depth])}", "a plain value")
    return tuple(path)
