"""Plug-ins: methods, rules, data formats and trackers of other packages, found by their entry points (docs/plugins.md).

Nothing is ever installed or received here: whoever runs a machine installs a package, and a run names what it needs. A
machine that does not have it, in the same version, refuses. What is offered under a name of fedpeft's own, or cannot be
loaded, is left out with a warning.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Literal, TypeVar

from fedpeft.errors import ResourceMissing, said_by

__all__ = ["Kind", "Plugin", "expect_installed", "loaded", "named", "plugins"]

Kind = Literal["method", "rule", "format", "tracker"]
GROUPS: Mapping[Kind, str] = MappingProxyType(
    {"method": "fedpeft.methods", "rule": "fedpeft.rules", "format": "fedpeft.formats", "tracker": "fedpeft.trackers"}
)
"""Kind -> group of entry points."""

NAMES: Mapping[Kind, str] = MappingProxyType(
    {"method": "[a-z][a-z0-9_]{0,39}", "rule": "[a-z][a-z0-9_-]{0,39}", "format": "[a-z0-9]{1,15}",
     "tracker": "[a-z][a-z0-9_-]{0,39}"}
)  # fmt: skip
"""What each kind may be called: a method as a table of run.toml, a format as the end of a file's name."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One thing that an installed package offers.

    Args:
        kind: what it is.
        name: under which a run names it.
        package: the distribution.
        version: of that.
        entry: where its object lies.
    """

    kind: Kind
    name: str
    package: str
    version: str
    entry: EntryPoint

    @property
    def key(self) -> str:
        """``method gains``: how plans and records name it."""
        return f"{self.kind} {self.name}"

    @property
    def source(self) -> str:
        """``fedpeft-lab 0.3``: what made it."""
        return f"{self.package} {self.version}"


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """What is installed, by name in ascending order; none of it is imported. Of two of one name there is none."""
    found: dict[str, Plugin] = {}
    doubled = set()
    for entry in sorted(entry_points(group=GROUPS[kind]), key=lambda one: one.name):
        if not re.fullmatch(NAMES[kind], entry.name) or entry.dist is None:
            _log.warning("the %s plug-in %r is left out: expected a name of %s", kind, entry.name, NAMES[kind])
            continue
        here = Plugin(kind=kind, name=entry.name, package=entry.dist.name, version=entry.dist.version, entry=entry)
        if (other := found.get(entry.name)) is not None and other.entry.value != entry.value:
            _log.warning("the %s is left out: %s and %s both have it", here.key, other.source, here.source)
            doubled.add(entry.name)
        found.setdefault(entry.name, here)
    return MappingProxyType({name: plugin for name, plugin in found.items() if name not in doubled})


def loaded(
    kind: Kind, form: type[T], *, taken: Collection[str], check: Callable[[T], None] | None = None
) -> Mapping[str, T]:
    """The records of all plug-ins of a kind, imported now; what is none or fails is left out with a warning.

    Args:
        kind: which.
        form: what each must be.
        taken: names that are fedpeft's own.
        check: raises whatever is wrong with a record.
    """
    found: dict[str, T] = {}
    for name, plugin in plugins(kind).items():
        why = "the name is fedpeft's own" if name in taken else ""
        try:
            value: object = None if why else plugin.entry.load()
            if check is not None and isinstance(value, form):
                check(value)
        except Exception as error:  # another's code; without it everything else works
            why, value = f"{type(error).__name__}: {said_by(error)}", None
        if isinstance(value, form):
            found[name] = value
        else:
            why = why or f"expected a {form.__name__}, found a {type(value).__name__}"
            _log.warning("the %s of %s is left out: %s", plugin.key, plugin.source, why)
    return MappingProxyType(found)


@cache
def named(reference: str) -> Callable[..., object]:
    """The function that ``module:function`` names, imported now.

    Raises:
        ResourceMissing: there is none.
    """
    try:
        found: object = EntryPoint(name="", value=reference, group="").load()
    except Exception as error:  # another's code
        raise ResourceMissing(
            f"Expected the function {reference} of a plug-in, found {type(error).__name__}: {said_by(error)}; install "
            "its package anew."
        ) from error
    if not callable(found):
        raise ResourceMissing(f"Expected {reference} of a plug-in to be a function, found a {type(found).__name__}.")
    return found


def expect_installed(needed: Mapping[str, str], *, kinds: Iterable[Kind] = tuple(GROUPS)) -> None:
    """Refuses work that needs a plug-in which this machine does not have, in the version that the run has.

    Args:
        needed: ``method gains`` -> ``fedpeft-lab 0.3``.
        kinds: that are looked at.

    Raises:
        ResourceMissing: names it.
    """
    here = {plugin.key: plugin.source for kind in GROUPS for plugin in plugins(kind).values()}
    for key, source in needed.items():
        if key.startswith(tuple(f"{kind} " for kind in kinds)) and here.get(key) != source:
            raise ResourceMissing(
                f"Expected the plug-in {key} of {source}, which this run needs, to be installed here; found "
                f"{here.get(key, 'none')}. Code is never taken from a coordinator: whoever runs this machine installs "
                "it."
            )
