"""A device's memory between two messages: in RAM for a simulation in one process, else files."""

from collections.abc import Callable
from pathlib import Path

from fedpeft.kept_file import KeptFile
from fedpeft.privacy import Budget, PrivacyLedger, Protected

__all__ = ["FileStore", "MemoryStore", "device_ledger"]


def device_ledger(
    journal: Path, *, witness: Path, budget: Budget, unit: Protected | None = None
) -> Callable[[], PrivacyLedger]:
    """Opens the ledger of what this device's examples have lost, over its life; each caller closes what it opened.

    Args:
        journal: on the device, beside its other state; never deleted: a ledger that is gone while its witness stands
            is refused, and so is an older copy of it.
        witness: remembers how long the journal was; kept out of the backups of ``journal``'s directory.
        budget: the site's own limit; epsilon infinite for none.
        unit: whom it is about; None: the smallest unit that was charged.
    """
    return lambda: PrivacyLedger(journal, witness=witness, budget=budget, unit=unit)


class MemoryStore:
    """``DeviceStore`` in RAM: dies with the process, as a simulated device does."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        """See ``DeviceStore``."""
        return self._values.get(key)

    def write(self, key: str, value: bytes) -> None:
        """See ``DeviceStore``."""
        self._values[key] = value


class FileStore:
    """``DeviceStore`` in a directory of its own, mode 0700: one file per key (``fedpeft.kept_file``)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files: dict[str, KeptFile] = {}

    def read(self, key: str) -> bytes | None:
        """See ``DeviceStore``."""
        return self._file(key).read()

    def write(self, key: str, value: bytes) -> None:
        """See ``DeviceStore``."""
        self._file(key).write(value)

    def _file(self, key: str) -> KeptFile:
        return self._files.setdefault(key, KeptFile(self._directory / key))
