"""Groups of devices: which of them a run asks, as the operator sorted them. A device may be in several.

As a label does, a group stays on the coordinator, goes by the device's key, and a device's membership ends with it.
"""

import re
from collections.abc import Mapping, Set

from fedpeft.errors import ConfigInvalid
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry

__all__ = ["GROUP_NAME", "Groups"]

GROUP_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Groups:
    """The groups in a registry. Thread-safe as far as the registry is."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def all(self) -> Mapping[bytes, Set[str]]:
        """Identity key -> the groups of the device, of those that are in one."""
        found: dict[bytes, set[str]] = {}
        for identity, name in self._registry.rows("SELECT identity, name FROM groups"):
            if isinstance(identity, bytes):
                found.setdefault(identity, set()).add(str(name))
        return found

    def names(self) -> tuple[str, ...]:
        """Of all groups that have a device, in their order."""
        return tuple(str(name) for (name,) in self._registry.rows("SELECT DISTINCT name FROM groups ORDER BY name"))

    def put(self, device: EnrolledDevice, name: str, *, member: bool) -> None:
        """Puts a device into a group, or takes it out; a group is there while a device is in it.

        Raises:
            ConfigInvalid: no name of a group.
        """
        if not re.fullmatch(GROUP_NAME, name):
            raise ConfigInvalid(
                f"Expected a group's name of at most 64 letters, digits, '.', '_' and '-', found {name[:80]!a}."
            )
        with self._registry.change() as db:
            db.execute("DELETE FROM groups WHERE identity = ? AND name = ?", (device.identity, name))
            if member:
                db.execute("INSERT INTO groups VALUES (?, ?)", (device.identity, name))

    def expect(self, name: str) -> None:
        """Returns when some device is in the group.

        Raises:
            ConfigInvalid: none is; names the groups that there are.
        """
        if name not in (found := self.names()):
            there = ", ".join(found) or "none"
            raise ConfigInvalid(
                f"Expected a group of devices, found none called {name[:80]!a} (there: {there}); put devices into it "
                "with `fedpeft coordinator clients group NAME GROUP`."
            )
