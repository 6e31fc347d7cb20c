"""From what a program has, a file, a dictionary or a ``RunConfig``, to a checked configuration and its text."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fedpeft.config import RunConfig, parse, read_config, resolved
from fedpeft.errors import ConfigInvalid, Problem

__all__ = ["SCENARIOS", "Config", "Overrides", "bundled", "configured", "inline", "lines"]

Config = str | Path | Mapping[str, object] | RunConfig
Overrides = Sequence[str] | Mapping[str, object]
"""Texts replace what they name, tables too; a dictionary changes the keys that it names alone, at any depth."""

SCENARIOS = ("airlines", "smollm")
"""Configurations that come with the package, by name."""

_PATH = re.compile(r"[A-Za-z0-9_.-]+")
DICTIONARY = "config"
"""Stands for the file's name in problems of a dictionary."""


def bundled(path: Path) -> Path:
    """The file of a bundled scenario, unless a file of that name is here."""
    if path.exists() or str(path) not in SCENARIOS:
        return path
    from importlib.resources import files

    return Path(str(files("fedpeft_sim"))) / "scenarios" / f"{path}.toml"


def configured(config: Config, overrides: Overrides = ()) -> tuple[RunConfig, str]:
    """The configuration of a simulation, and the text that the run directory keeps.

    Args:
        config: a run.toml, the name of a bundled scenario, or what such a file holds.
        overrides: ``"rounds.count=3"`` each, or ``{"rounds.count": 3}``, or ``{"rounds": {"count": 3}}``.

    Raises:
        ConfigInvalid: with every problem found.
    """
    changes = lines(overrides)
    if not isinstance(config, str | Path | Mapping | RunConfig):
        raise ConfigInvalid(f"Expected a run.toml, a dictionary of what it holds or a RunConfig, found {config!r:.40}.")
    if isinstance(config, str | Path):
        path = bundled(Path(config))
        text = read_config(path)  # once: a pipe has nothing to say a second time
        return parse(text, source=str(path), overrides=changes, simulation=True), text
    text = resolved(config) if isinstance(config, RunConfig) else _toml(config)
    return parse(text, source=DICTIONARY, overrides=changes, simulation=True), text


def lines(overrides: Overrides) -> list[str]:
    """Overrides as the command line writes them."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        listed = list(overrides) if isinstance(overrides, Iterable) else [overrides]
        if wrong := [one for one in listed if not isinstance(one, str)]:
            expected = "{'rounds.count': 3} or ['rounds.count=3']"
            raise ConfigInvalid(f"Expected overrides as {expected}, found {wrong[0]!r:.40}.")
        return listed
    return [f"{key}={inline(value, key)}" for key, value in _keys(overrides)]


def _keys(overrides: Mapping[str, object], within: str = "") -> Iterator[tuple[str, object]]:
    """The single keys that a dictionary changes, however deep: the others of each of its tables stay.

    Raises:
        ConfigInvalid: a table names no key, or one that ``key.path=value`` has no way to write.
    """
    for name, value in overrides.items():
        key = f"{within}{name}"
        if not isinstance(value, Mapping):
            yield key, value
        elif value and all(_PATH.fullmatch(str(one)) for one in value):
            yield from _keys(value, f"{key}.")
        else:
            whole = f"{key}={inline(value, key)}"
            raise ConfigInvalid(
                f"Expected overrides of {key} to name its keys, of letters, digits, _ and -, found {value!r:.80}. The "
                f"others of its keys stay; to replace all of them give it as text: overrides=[{whole!r:.120}]."
            )


def _toml(document: Mapping[str, object]) -> str:
    head: list[str] = []
    tables: list[str] = []
    for key, value in document.items():
        if not isinstance(value, Mapping):  # before the tables, or it would belong to the last of them
            head.append(f"{_key(key)} = {inline(value, str(key))}")
            continue
        tables.append(f"[{_key(key)}]")
        tables += [f"{_key(name)} = {inline(one, f'{key}.{name}')}" for name, one in value.items()]
    return "\n".join([*head, *tables]) + "\n"


def inline(value: object, where: str) -> str:
    """One value as TOML writes it on a line.

    Args:
        value: text, numbers, lists, tuples, paths and dictionaries of these.
        where: its key, for messages.

    Raises:
        ConfigInvalid: TOML has no such value.

    Example:
        >>> inline({"by": "iid", "clients": 5}, "data.partition")
        '{by = "iid", clients = 5}'
    """
    if hasattr(value, "tolist"):  # a number or an array of numpy's
        value = value.tolist()
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return "{" + ", ".join(f"{_key(key)} = {inline(one, f'{where}.{key}')}" for key, one in value.items()) + "}"
        case set() | frozenset():  # a set of texts has another order in each process
            return inline(sorted(value, key=str), where)
        case list() | tuple():
            return "[" + ", ".join(inline(one, f"{where}[{i}]") for i, one in enumerate(value)) + "]"
        case _:
            expected = "text, a number, a list or a dictionary"
            remedy = "Leave the key out for its default." if value is None else ""
            problem = Problem(where=f"{DICTIONARY}: {where}", expected=expected, found=f"{value!r:.40}", remedy=remedy)
            raise ConfigInvalid("The configuration cannot be read.", problems=[problem])


def _key(name: object) -> str:
    text = str(name)
    plain = text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    return text if plain else json.dumps(text, ensure_ascii=False)
