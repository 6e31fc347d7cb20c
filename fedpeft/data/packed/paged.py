"""Bytes and numbers that grow: page by page, in memory up to a size and beyond it in a nameless temporary file.

The file is private to this process and gone with it. What is appended is never changed; a read costs one call of the
operating system a page.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

__all__ = ["PAGE_BYTES", "PagedBytes", "PagedNumbers", "Pages"]

PAGE_BYTES = 2**16

Kind = TypeVar("Kind", bound=np.generic)


class Pages:
    """Where the full pages of a few sequences lie.

    Args:
        memory_bytes: of all of them in memory; the rest is on the disk.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._left = memory_bytes
        self._file: BinaryIO | None = None
        self._end = 0

    def add(self, page: bytes) -> bytes | int:
        """Keep a page: itself, or where it lies in the file."""
        if self._left >= len(page):
            self._left -= len(page)
            return page
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fedpeft-", buffering=0)  # noqa: SIM115 - lives as long as we
        begin, left = self._end, memoryview(page)
        while left:  # one call may take less
            written = os.pwrite(self._file.fileno(), left, self._end)
            self._end += written
            left = left[written:]
        return begin

    def read(self, page: bytes | int, start: int, stop: int) -> bytes:
        """A part of a page."""
        if isinstance(page, bytes):
            return page[start:stop]
        if self._file is None:
            raise RuntimeError("a page has no file")
        read = b""
        while len(read) < stop - start:  # one call may give less
            part = os.pread(self._file.fileno(), stop - start - len(read), page + start + len(read))
            if not part:
                raise OSError(f"Expected {stop - start} bytes of a temporary file, found {len(read)}.")
            read += part
        return read


class PagedBytes:
    """Bytes one behind the other."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._full: list[bytes | int] = []
        self._tail = bytearray()

    def append(self, content: bytes) -> None:
        """Add at the end."""
        self._tail += content
        whole = len(self._tail) // PAGE_BYTES * PAGE_BYTES
        if whole:
            view = bytes(memoryview(self._tail)[:whole])
            self._full += [self._pages.add(view[at : at + PAGE_BYTES]) for at in range(0, whole, PAGE_BYTES)]
            del self._tail[:whole]

    def __len__(self) -> int:
        return len(self._full) * PAGE_BYTES + len(self._tail)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``."""
        stop = min(stop, len(self))
        parts = []
        while start < stop:
            page, begin = divmod(start, PAGE_BYTES)
            end = min(PAGE_BYTES, begin + stop - start)
            if page < len(self._full):
                parts.append(self._pages.read(self._full[page], begin, end))
            else:
                parts.append(bytes(memoryview(self._tail)[begin:end]))
            start += end - begin
        return parts[0] if len(parts) == 1 else b"".join(parts)


class PagedNumbers(Sequence[int], Generic[Kind]):
    """Numbers, or rows of a structured type, one behind the other.

    Args:
        kind: their type.
        pages: where they lie.
    """

    def __init__(self, kind: type[Kind] | np.dtype[Kind], pages: Pages) -> None:
        self.kind = np.dtype(kind)
        self._bytes = PagedBytes(pages)

    def extend(self, numbers: npt.NDArray[np.generic]) -> None:
        """Add at the end, as numbers of our type."""
        self._bytes.append(np.ascontiguousarray(numbers, self.kind).tobytes())

    def window(self, start: int, stop: int) -> npt.NDArray[Kind]:
        """Those from ``start`` up to ``stop``, shape (stop - start,); not to be written to."""
        size = self.kind.itemsize
        return np.frombuffer(self._bytes.read(start * size, stop * size), self.kind)

    def take(self, places: npt.NDArray[np.intp]) -> npt.NDArray[Kind]:
        """Those at ``places``, in that order; each page is read once."""
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        pages = ascending // max(1, PAGE_BYTES // self.kind.itemsize)
        found = np.empty(len(places), self.kind)
        begins = np.flatnonzero(np.diff(pages, prepend=-1))
        for begin, end in pairwise([*begins.tolist(), len(places)]):
            first = int(ascending[begin])
            window = self.window(first, int(ascending[end - 1]) + 1)
            found[order[begin:end]] = window[ascending[begin:end] - first]
        return found

    def windows(self, size: int) -> Iterator[npt.NDArray[Kind]]:
        """All of them, so many at a time."""
        for start in range(0, len(self), size):
            yield self.window(start, start + size)

    def __len__(self) -> int:
        return len(self._bytes) // self.kind.itemsize

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if chosen.step == 1:
                found: list[int] = self.window(chosen.start, chosen.stop).tolist()
                return found
            return [self[i] for i in chosen]
        row = range(len(self))[index]
        return int(self.window(row, row + 1)[0])

    def __iter__(self) -> Iterator[int]:
        for window in self.windows(PAGE_BYTES // self.kind.itemsize):
            yield from window.tolist()
