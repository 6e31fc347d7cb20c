"""What Flower's messages are made of, while they are on their way: small things in memory, large ones in files.

Flower's own stores are a dictionary, whose size a fleet of large updates decides, and SQLite, which takes some 20 ms of
Python an object. Nothing here outlives the process: the engine asks anew after a restart (docs/adr/0002).
"""

import shutil
from pathlib import Path

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from fedpeft.files import PRIVATE

__all__ = ["HELD_BYTES", "LARGE_BYTES", "FleetObjects"]

LARGE_BYTES = 1 << 16
HELD_BYTES = 32 << 20
"""Of contents that came inside their messages and wait to be claimed: beyond that the next large one is a file."""


class FleetObjects(InMemoryObjectStore):
    """Implements Flower's ``ObjectStore``, and keeps contents that came inside a message.

    Args:
        folder: of its own: emptied now, private to this user.
        held_bytes: of the latter, in memory.
    """

    def __init__(self, folder: Path, *, held_bytes: int = HELD_BYTES) -> None:
        super().__init__()
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        self._folder, self._filed = folder, set[str]()
        self._held: dict[str, bytes | None] = {}  # None: in a file
        self._room = held_bytes

    def keep(self, name: str, content: bytes) -> None:
        """Keep a message's content until it is taken or deleted.

        Args:
            name: the message's id, a checked SHA-256.
        """
        with self.lock_store:
            if name in self._held:
                return
            if len(content) < LARGE_BYTES or len(content) <= self._room:
                self._held[name] = content
                self._room -= len(content)
            else:
                self._held[name] = None
                self._write(name, content)

    def take(self, name: str) -> bytes | None:
        """What was kept under this name, once."""
        with self.lock_store:
            if name not in self._held:
                return None
            content = self._held[name]
            whole = (self._folder / name).read_bytes() if content is None else content
            self._drop(name)
            return whole

    def put(self, object_id: str, object_content: bytes) -> None:
        """See ``ObjectStore``; what is not the content of its id is refused."""
        super().put(object_id, object_content)
        if len(object_content) < LARGE_BYTES:
            return
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or object_id in self._filed:
                return
            self._write(object_id, object_content)
            self._filed.add(object_id)
            entry.content = b""

    def get(self, object_id: str) -> bytes | None:
        """See ``ObjectStore``."""
        with self.lock_store:
            if object_id in self._filed:
                return (self._folder / object_id).read_bytes()
            return super().get(object_id)

    def delete(self, object_id: str) -> None:
        """See ``ObjectStore``; also what was kept under this name."""
        with self.lock_store:
            self._drop(object_id)
            super().delete(object_id)
            if object_id in self._filed and object_id not in self.store:
                self._filed.remove(object_id)
                (self._folder / object_id).unlink()

    def clear(self) -> None:
        """See ``ObjectStore``."""
        with self.lock_store:
            super().clear()
            for name in list(self._held):
                self._drop(name)
            while self._filed:
                (self._folder / self._filed.pop()).unlink()

    def _drop(self, name: str) -> None:
        if name not in self._held:
            return
        content = self._held.pop(name)
        if content is None:
            (self._folder / name).unlink()
        else:
            self._room += len(content)

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / name  # a checked SHA-256 is a plain name
        path.touch(mode=PRIVATE)
        path.write_bytes(content)
