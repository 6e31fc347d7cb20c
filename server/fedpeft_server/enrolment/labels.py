"""What operators call a device beside the name that it enrolled under (docs/adr/0039-labels.md).

Devices sign for each other's names, and refuse a known key under another one: a name is for good. A label stays on the
coordinator, goes by the device's key, and ends with it.
"""

from collections.abc import Mapping

from fedpeft.errors import ConfigInvalid
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, alike

__all__ = ["LABEL_CHARACTERS", "Labels"]

LABEL_CHARACTERS = 64


class Labels:
    """The labels in a registry. Thread-safe as far as the registry is."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def all(self) -> Mapping[bytes, str]:
        """Identity key -> label, of the devices that have one."""
        rows = self._registry.rows("SELECT identity, label FROM labels")
        return {identity: str(label) for identity, label in rows if isinstance(identity, bytes)}

    def put(self, device: EnrolledDevice, label: str) -> str:
        """Calls the device so from now on, and returns the label as it is kept; an empty one removes it.

        Raises:
            ConfigInvalid: it is too long, cannot be printed, or reads like another device's name or label.
        """
        label = " ".join(label.split())
        if len(label) > LABEL_CHARACTERS:
            raise ConfigInvalid(f"Expected at most {LABEL_CHARACTERS} characters, found {len(label)}.")
        if not label.isprintable():
            raise ConfigInvalid(f"Expected a label of printable characters, found {label!a}.")
        with self._registry.change() as db:
            labels = self.all()
            for other in self._registry.devices() if label else ():
                taken = {alike(other.name), alike(labels.get(other.identity, ""))}
                if other.identity != device.identity and alike(label) in taken:
                    raise ConfigInvalid(
                        f"Expected a label that no other device has, found it on {other.name}; see `clients ls`."
                    )
            db.execute("DELETE FROM labels WHERE identity = ?", (device.identity,))
            if label:
                db.execute("INSERT INTO labels VALUES (?, ?)", (device.identity, label))
        return label

    def holder(self, name: str) -> bytes | None:
        """Identity key of the device whose label reads like this name; None: no device's does."""
        return next((identity for identity, label in self.all().items() if alike(label) == alike(name)), None)
