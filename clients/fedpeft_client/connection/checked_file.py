"""A file that is being fetched: it grows by checked chunks, and is written while the next bytes are on their way.

Receiving, hashing and writing a gibibyte take about as long as each other, and the first is Python's and gRPC's. The
other two let go of the interpreter, so they have a thread of their own here; the disk is told to begin at once, so that
making the file durable at the end takes no second time (docs/benchmarks.md).
"""

import hashlib
import os
import queue
import threading
from types import TracebackType
from typing import Self

from fedpeft.base.manifest import CHUNK_BYTES, FileEntry
from fedpeft.errors import IntegrityFailed

__all__ = ["ChunkWriter", "Partial"]

_WAITING = 2
"""Pieces that were received and are not written yet: of a chunk that is wrong no more is fetched in vain."""


class Partial:
    """A file that grows by checked chunks; what lies after the last whole chunk is being checked.

    Args:
        entry: what it will be.
        descriptor: the open file; what is in it already is checked here, and cut at the first wrong chunk.
    """

    def __init__(self, entry: FileEntry, descriptor: int) -> None:
        self.entry, self._descriptor = entry, descriptor
        self._hash = hashlib.sha256()
        here = min(os.fstat(descriptor).st_size, entry.size_bytes)
        self.size = 0
        while self.size < here:
            piece = os.pread(descriptor, min(1 << 20, here - self.size, self._left_in_chunk()), self.size)
            if self._take(piece) is not None:
                break
        os.ftruncate(descriptor, self.size)

    def append(self, piece: bytes) -> int | None:
        """Writes bytes that came; the number of the chunk that they made wrong, which is then cut off again."""
        view = memoryview(piece)
        if len(view) > self.entry.size_bytes - self.size:
            raise IntegrityFailed(
                f"Expected {self.entry.size_bytes} bytes of {self.entry.name}, found more; do not trust this source."
            )
        while view:
            part = view[: self._left_in_chunk()]
            part = part[: os.pwrite(self._descriptor, part, self.size)]  # a full disk takes a part first
            if (wrong := self._take(part)) is not None:
                os.ftruncate(self._descriptor, self.size)
                return wrong
            view = view[len(part) :]
        return None

    def _left_in_chunk(self) -> int:
        return min(CHUNK_BYTES - self.size % CHUNK_BYTES, self.entry.size_bytes - self.size)

    def _take(self, part: bytes | memoryview) -> int | None:
        """Counts bytes that lie in the file; at the end of a chunk, goes back to its start if it is wrong."""
        number = self.size // CHUNK_BYTES
        self._hash.update(part)
        self.size += len(part)
        if self.size % CHUNK_BYTES and self.size < self.entry.size_bytes:
            return None
        wrong = self._hash.hexdigest() != self.entry.chunks[number]
        self._hash = hashlib.sha256()
        if wrong:
            self.size = number * CHUNK_BYTES
            return number
        _begin_writing(self._descriptor, number * CHUNK_BYTES, self.size - number * CHUNK_BYTES)
        return None


def _begin_writing(descriptor: int, offset: int, size_bytes: int) -> None:
    """Has the disk begin with these bytes, without waiting for it.

    On Linux the advice starts the writing of what is dirty, and lets go of what is not, which here is nothing yet.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)


class ChunkWriter:
    """Appends pieces to a file on a thread of its own, in order; a context manager that waits for them at its end.

    Args:
        partial: nobody else writes to it meanwhile.

    Attributes:
        wrong: the number of the chunk that its bytes made wrong; what came after it was dropped. None: none so far.
    """

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self.wrong: int | None = None
        self._error: Exception | None = None
        self._pieces: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="chunk-writer", daemon=True)

    def put(self, piece: bytes) -> None:
        """Hands over the next bytes; waits while too many wait.

        Raises:
            IntegrityFailed: there are more than the file may have.
            OSError: an earlier piece could not be written.
        """
        if self._error is not None:
            raise self._error
        if piece:
            self._pieces.put(piece)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._pieces.put(b"")
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        while piece := self._pieces.get():
            if self._error is None and self.wrong is None:
                try:
                    self.wrong = self._partial.append(piece)
                except Exception as error:
                    self._error = error
