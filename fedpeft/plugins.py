"""Plug-ins: what other packages that are installed here offer, found by their entry points (docs/trackers.md).

Nothing is ever installed or received here: a run names what it needs, and a machine that does not have it refuses.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Literal

__all__ = ["plugins"]

Kind = Literal["tracker"]
GROUPS: Mapping[Kind, str] = MappingProxyType({"tracker": "fedpeft.trackers"})
"""Kind -> group of entry points."""

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One thing that an installed package offers.

    Args:
        name: under which a run names it.
        package: the distribution.
        version: of that.
        entry: where its object lies.
    """

    name: str
    package: str
    version: str
    entry: EntryPoint

    @property
    def source(self) -> str:
        """``lab-trackers 0.3``: what made it."""
        return f"{self.package} {self.version}"


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """What is installed, by name in ascending order; none of it is imported."""
    found = {}
    for entry in sorted(entry_points(group=GROUPS[kind]), key=lambda one: one.name):
        if not NAME.fullmatch(entry.name) or entry.dist is None:
            _log.warning("the %s plug-in %r is left out: names are a-z, 0-9, - and _", kind, entry.name)
            continue
        found[entry.name] = Plugin(name=entry.name, package=entry.dist.name, version=entry.dist.version, entry=entry)
    return MappingProxyType(found)
