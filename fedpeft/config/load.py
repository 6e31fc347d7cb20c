"""run.toml -> RunConfig: every problem at once, or a frozen configuration.

Three passes: TOML (syntax, duplicate keys), pydantic (types, ranges, unknown keys), and the checks across
fields. When the second finds faults, the third still runs on a copy in which each faulty value has been
replaced, and reports whatever does not rest on a replaced value; so one call shows all there is to mend.
"""

import copy
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time
from pathlib import Path

from pydantic import ValidationError

from fedpeft.config.check import check
from fedpeft.config.derived import with_head_start, with_metric
from fedpeft.config.explain import Fault, Location, explain, key_of, value_at
from fedpeft.config.model import RunConfig
from fedpeft.config.overrides import MAX_DEPTH, apply_overrides
from fedpeft.errors import ConfigInvalid, Problem
from fedpeft.files import read_text
from fedpeft.terminal import counted

__all__ = ["load", "parse", "read_config"]

DEVICES_OWN = "the-devices-own.jsonl"
"""Stands for the data in a deployment's configuration; nobody opens it."""
_SKELETON: dict[str, object] = {
    "run": {"name": "x"},
    "base": {"model": "x"},
    "task": {"kind": "classify"},
    "data": {"source": "x"},
    "adapter": {},
    "device": [{"clients": ["*"], "methods": ["lora"]}],
}
"""Stands in for required keys that are missing or wrong, so that the other keys can still be checked."""


def load(path: str | Path, overrides: Sequence[str] = (), *, simulation: bool = False) -> RunConfig:
    """Reads and checks one configuration file.

    Args:
        path: the TOML file.
        overrides: ``key.path=value`` each, applied in order before anything is checked.
        simulation: whether all clients live on this machine; allows ``secagg.mode = "off"`` and labels
            inferred from the data. If not, [data] and [[device]] need not be there and are not read.

    Returns:
        The frozen configuration.

    Raises:
        ConfigInvalid: with every problem found.
    """
    path = Path(path)
    return parse(read_config(path), source=str(path), overrides=overrides, simulation=simulation)


def read_config(path: Path) -> str:
    """What a run.toml says, not yet parsed.

    Raises:
        ConfigInvalid: it cannot be read, or is no text.
    """
    try:
        return read_text(path)
    except OSError as error:
        problem = Problem(where=str(path), expected="a readable TOML file", found=error.strerror or repr(error))
        raise ConfigInvalid("The configuration cannot be read.", problems=[problem]) from error
    except ValueError as error:
        expected, _, found = str(error).removeprefix("expected ").partition(", found ")
        problem = Problem(where=str(path), expected=expected, found=found)
        raise ConfigInvalid("The configuration cannot be read.", problems=[problem]) from error


def parse(text: str, *, source: str, overrides: Sequence[str] = (), simulation: bool = False) -> RunConfig:
    """As ``load``, from text; ``source`` names it in problems.

    Raises:
        ConfigInvalid: with every problem found.
    """
    try:
        document: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid("The configuration is not TOML.", problems=[_syntax(error, source)]) from error
    except (RecursionError, ValueError) as error:  # lists in lists, a number of thousands of digits
        unreasonable = Problem(where=source, expected="TOML within reason", found=str(error)[:80])
        raise ConfigInvalid("The configuration is not TOML.", problems=[unreasonable]) from error
    written = _tables(document)
    problems, overridden = apply_overrides(document, overrides)
    _expect_within_reason(document, source)
    if simulation:
        _complete(document, written)
    else:
        _leave_to_devices(document)
    typed = _untyped(document)
    known = {fault.location for fault in typed}
    faults = [*typed, *(fault for fault in _dates(document) if fault.location not in known)]

    def problem(location: Location, expected: str, found: str, remedy: str) -> Problem:
        where = f"--set {key_of(location)}" if _covered(location, overridden) else f"{source}: {key_of(location)}"
        return Problem(where=where, expected=expected, found=found, remedy=remedy)

    problems += [problem(fault.location, fault.expected, fault.found, fault.remedy) for fault in faults]
    repaired = _repair(document, faults)
    config = _typed(repaired)
    if config is not None:
        broken = {_field(fault.location) for fault in faults}
        holders = {one[:depth] for one in broken for depth in range(len(one) + 1)}
        for finding in check(config, simulation=simulation):
            read = [_location(key) for key in (finding.reads or (finding.key,))]
            read += [_location(finding.key)] if "." in finding.key else []
            if not any(one in holders or _covered(one, broken) for one in read):
                location = _location(finding.key)
                problems.append(problem(location, finding.expected, finding.found, finding.remedy))
    if problems or config is None:
        count = counted(len(problems), "problem")
        raise ConfigInvalid(f"Expected a valid configuration, found {count}; nothing was started.", problems=problems)
    return with_metric(with_head_start(config))


def _expect_within_reason(document: dict[str, object], source: str) -> None:
    """Refuses what TOML's own specification does not promise: what follows walks the document by recursion."""
    level: list[object] = [document]
    for _ in range(MAX_DEPTH + 1):
        for value in level:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                problem = Problem(where=source, expected="whole numbers of 64 bits", found="a larger one")
                raise ConfigInvalid("The configuration is not TOML.", problems=[problem])
            if isinstance(value, str) and (spoilt := re.search("[\ud800-\udfff]", value)):  # of a file's name, say
                found = f"{value!r}, whose character {spoilt.start() + 1} is none"
                problem = Problem(where=source, expected="text of UTF-8", found=found, remedy="Rename what it names.")
                raise ConfigInvalid("The configuration is not TOML.", problems=[problem])
        tables = [
            [*one, *one.values()] if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        ]
        level = [inner for table in tables for inner in table]
        if not level:
            return
    problem = Problem(where=source, expected=f"at most {MAX_DEPTH} tables and lists inside each other", found="more")
    raise ConfigInvalid("The configuration is not TOML.", problems=[problem])


SIMULATED_CLIENTS = 5


def _complete(document: dict[str, object], written: Collection[str]) -> None:
    """Fills in what a short file for a simulation leaves out: a name, LoRA, equal shares, and that all train all.

    Only in tables that are not in the file, whatever overrides put into them; what is there and lacks a key stays for
    the checks to name.

    Args:
        document: with its overrides.
        written: the tables of the file itself.
    """
    run = document.setdefault("run", {})
    if "run" not in written and isinstance(run, dict):
        run.setdefault("name", "run")
    adapter = document.setdefault("adapter", {"lora": {}})
    methods = [key for key, value in adapter.items() if isinstance(value, dict)] if isinstance(adapter, dict) else []
    document.setdefault("device", [{"clients": ["*"], "methods": methods}])
    data = document.get("data")
    partition = data.setdefault("partition", {}) if isinstance(data, dict) else None
    if "data.partition" not in written and isinstance(partition, dict):
        by = partition.setdefault("by", "column" if "column" in partition else "iid")
        if by == "iid":
            partition.setdefault("clients", SIMULATED_CLIENTS)


def _tables(document: Mapping[str, object]) -> set[str]:
    """The tables of a document that ``_complete`` would make."""
    data = document.get("data")
    inside = {f"data.{key}" for key in data} if isinstance(data, dict) else set()
    return {*document, *inside}


def _leave_to_devices(document: dict[str, object]) -> None:
    """In a deployment what a device has and trains is its own site's: what stands here about it is not read."""
    adapter = document.get("adapter")
    methods = [name for name, given in adapter.items() if isinstance(given, dict)] if isinstance(adapter, dict) else []
    document["data"] = {"source": DEVICES_OWN, "partition": {"by": "column", "column": "device"}}
    document["device"] = [{"clients": ["*"], "methods": methods or ["lora"]}]


def _syntax(error: tomllib.TOMLDecodeError, source: str) -> Problem:
    """tomllib says what and where in one sentence; the line belongs in the place."""
    match = re.fullmatch(r"(.*) \(at (.*)\)", str(error))
    what, place = match.groups() if match else (str(error), "")
    hint = "A key or a table may appear once only." if "overwrite" in what or "twice" in what else ""
    return Problem(
        where=f"{source}: {place}" if place else source,
        expected="valid TOML",
        found=what[:1].lower() + what[1:],
        remedy=hint,
    )


def _typed(document: dict[str, object]) -> RunConfig | None:
    """The configuration, or None when the document still has faults."""
    try:
        return RunConfig.model_validate_json(json.dumps(document, default=str))
    except ValidationError:
        return None


def _untyped(document: dict[str, object]) -> tuple[Fault, ...]:
    """What pydantic finds; through JSON, since strict mode takes a list for a tuple only there."""
    try:
        RunConfig.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        return explain(error, document)
    return ()


def _dates(document: object, location: Location = ()) -> list[Fault]:
    """Dates and times: TOML has them, no key of ours does, and JSON would turn them into text."""
    if isinstance(document, date | time):
        expected, remedy = "no date or time", "Put it in quotes if it is text."
        return [Fault(location=location, expected=expected, found=str(document), remedy=remedy, kind="wrong")]
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [fault for key, value in pairs for fault in _dates(value, (*location, key))]


def _repair(document: dict[str, object], faults: Sequence[Fault]) -> dict[str, object]:
    """A copy with every faulty field taken out and required ones filled from the skeleton."""
    if not faults:
        return document
    repaired = copy.deepcopy(document)
    for fault in faults:
        location = _field(fault.location) if fault.kind == "wrong" else fault.location
        holder = value_at(repaired, location[:-1])
        if isinstance(holder, dict):
            holder.pop(location[-1], None)
    _fill(repaired, _SKELETON)
    return repaired


def _fill(document: dict[str, object], skeleton: dict[str, object]) -> None:
    for key, value in skeleton.items():
        present = document.setdefault(key, copy.deepcopy(value))
        if isinstance(present, dict) and isinstance(value, dict):
            _fill(present, value)
        elif isinstance(present, list) and isinstance(value, list):
            for entry in present:
                if isinstance(entry, dict) and isinstance(value[0], dict):
                    _fill(entry, value[0])


def _field(location: Location) -> Location:
    """The location without the indices at its end: the field that holds the list."""
    while location and isinstance(location[-1], int):
        location = location[:-1]
    return location


def _location(key: str) -> Location:
    """The inverse of ``key_of``."""
    parts = re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)
    return tuple(name or int(index) for name, index in parts)


def _covered(location: Location, by: Collection[Location]) -> bool:
    """Whether one of ``by`` is the location or holds it."""
    return any(location[:depth] in by for depth in range(len(location) + 1))
