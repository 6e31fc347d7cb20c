"""The trained adapters that a coordinator hands to its devices: files of its run directories, and nothing else.

Whose data an adapter learned from should be able to use it. ``Settings.adapters`` says who may fetch: the devices that
were in one of the run's sums (the default), every enrolled device, or nobody.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

from fedpeft.deployment.messages import AdapterEntry, AdapterFile
from fedpeft.errors import FedpeftError
from fedpeft_server.home import AdapterAccess
from fedpeft_server.run.run_view import RunView, list_runs, read_run
from fedpeft_server.run.verdict import rounds_done
from fedpeft_server.service.base_files import open_at

__all__ = ["AdapterFiles"]

SLOTS = ("final", "best", "latest")
MOST_RUNS = 200
"""Listed, newest first."""
_log = logging.getLogger(__name__)


class AdapterFiles:
    """Read-only view of the adapters under a folder of runs. Thread-safe.

    Args:
        runs: the coordinator's.
        access: who may have them.
    """

    def __init__(self, runs: Path, access: AdapterAccess) -> None:
        self._runs, self._access = runs, access
        self._digests: dict[tuple[str, int, int, int], str] = {}

    def listing(self, device: str) -> tuple[AdapterEntry, ...]:
        """What this device may fetch, newest run first: a run's final adapter, else its best, else its latest."""
        entries = (self._entry_for(device, path) for path in self._listed())
        return tuple(entry for entry in entries if entry is not None)

    def open(self, device: str, run_id: str, file: str, sha256: str, offset: int) -> BinaryIO | None:
        """A listed file from an offset on; None if it is not listed for this device (any more), or has other bytes."""
        path = next((path for path in self._listed() if path.name == run_id), None)
        entry = None if path is None else self._entry_for(device, path)
        if path is None or entry is None:
            return None
        for listed in entry.files:
            if (listed.name, listed.sha256) == (file, sha256) and offset <= listed.size_bytes:
                return open_at(path / "adapters" / entry.slot / file, offset)
        return None

    def _listed(self) -> list[Path]:
        """The runs that are looked at, newest first."""
        return [] if self._access == "nobody" else sorted(list_runs(self._runs), reverse=True)[:MOST_RUNS]

    def _entry_for(self, device: str, path: Path) -> AdapterEntry | None:
        try:
            view = read_run(path)
            return self._entry(view) if self._may(device, view) else None
        except (FedpeftError, OSError) as error:  # one damaged run does not hide the others
            _log.warning("the adapter of %s is not handed out: %s", path.name, error)
            return None

    def _may(self, device: str, view: RunView) -> bool:
        if self._access == "enrolled":
            return True
        return any(one.client == device and one.state == "summed" for row in view.rounds for one in row.clients)

    def _entry(self, view: RunView) -> AdapterEntry | None:
        for slot in SLOTS:
            folder = view.path / "adapters" / slot
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file()) if folder.is_dir() else []
            if names:
                return AdapterEntry(
                    run_id=view.path.name,
                    slot=slot,
                    rounds=rounds_done(view.rounds, view.config().rounds),
                    base=view.manifest.base_digest,
                    files=tuple(self._file(folder / name) for name in names),
                )
        return None

    def _file(self, path: Path) -> AdapterFile:
        """Hashed once for each content: a published folder is replaced whole, never changed."""
        stat = path.stat()
        key = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if key not in self._digests:
            with path.open("rb") as content:
                self._digests[key] = hashlib.file_digest(content, "sha256").hexdigest()
        return AdapterFile(name=path.name, size_bytes=stat.st_size, sha256=self._digests[key])
