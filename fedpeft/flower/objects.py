"""What Flower's messages are made of, while they are on their way: small objects in memory, large ones in files.

Flower's own stores are a dictionary, whose size a fleet of large updates decides, and SQLite, which takes some 20 ms of
Python an object. Nothing here outlives the process: the engine asks anew after a restart (docs/adr/0002).
"""

import shutil
from pathlib import Path

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from fedpeft.files import PRIVATE

__all__ = ["LARGE_BYTES", "FleetObjects"]

LARGE_BYTES = 1 << 16


class FleetObjects(InMemoryObjectStore):
    """Implements Flower's ``ObjectStore``.

    Args:
        folder: of its own: emptied now, private to this user.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        self._folder, self._filed = folder, set[str]()

    def put(self, object_id: str, object_content: bytes) -> None:
        """See ``ObjectStore``; what is not the content of its id is refused."""
        super().put(object_id, object_content)
        if len(object_content) < LARGE_BYTES:
            return
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or object_id in self._filed:
                return
            path = self._folder / object_id  # its id is a checked SHA-256: a plain name
            path.touch(mode=PRIVATE)
            path.write_bytes(object_content)
            self._filed.add(object_id)
            entry.content = b""

    def get(self, object_id: str) -> bytes | None:
        """See ``ObjectStore``."""
        with self.lock_store:
            if object_id in self._filed:
                return (self._folder / object_id).read_bytes()
            return super().get(object_id)

    def is_root(self, object_id: str) -> bool:
        """Whether it is part of nothing else: a message."""
        with self.lock_store:
            entry = self.store.get(object_id)
            return entry is not None and entry.ref_count == 0

    def delete(self, object_id: str) -> None:
        """See ``ObjectStore``."""
        with self.lock_store:
            super().delete(object_id)
            if object_id in self._filed and object_id not in self.store:
                self._filed.remove(object_id)
                (self._folder / object_id).unlink()

    def clear(self) -> None:
        """See ``ObjectStore``."""
        with self.lock_store:
            super().clear()
            while self._filed:
                (self._folder / self._filed.pop()).unlink()
