"""A file whose content is replaced often and durably, for a fraction of what a new file and a rename cost.

``fedpeft.files.write_file`` syncs a new file and then its directory: two commits of a file system's journal for every
change. Here a file has two halves. A change goes into the half that is not in use, in one write and one sync of blocks
that are there already; then the other half is overwritten with zeros, so that nothing of the earlier content stays.
After a crash the file holds its old content or its new one, never a part: a half counts if the digest in its head is
right, and of two such halves the later one. As before there is one writer per file; readers may come at any time.

What a power cut left of an earlier content, because the zeros had not reached the disk, is overwritten by the next
process's first write. Until then a later half that the disk itself damages gives way to the earlier one: whoever must
notice that keeps a number elsewhere, as the ledger does.
"""

import contextlib
import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, write_file

__all__ = ["IN_PLACE_BYTES", "KeptFile"]

IN_PLACE_BYTES = 1 << 20
"""A larger content is a new file each time: two halves of it would be twice the space, and the syncs are the lesser
part of what it costs."""

_MAGIC = b"fedpeft kept 1\n\0"
_BLOCK = 4096
_HEADER = struct.Struct(">16sQ32s")
"""The magic, what a half may hold, and the SHA-256 of both; zeros follow up to the end of the block."""
_NEAR = 12
"""So many bytes of the magic in their places, and it was a header."""
_HEAD = struct.Struct(">QQ32s")
_READ_AGAIN = 8
"""How often a content is looked for while its writer is at work."""


@dataclass(frozen=True, slots=True)
class _Half:
    """The head of one half.

    Args:
        place: 0 or 1.
        sequence: of its content, from 1.
        length: of its content, in bytes.
        digest: SHA-256 of sequence, length and content.
    """

    place: int
    sequence: int
    length: int
    digest: bytes


class KeptFile:
    """One such file. A file that was written as a whole, by ``write_file``, is read as what it is.

    Args:
        path: in a directory that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[int, _Half] | None = None  # the inode and its half in use, written or checked here

    def read(self) -> bytes | None:
        """The content; None if there is no file.

        Raises:
            IntegrityFailed: its header, or either half, is not what was written.
            OSError: it cannot be read.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            capacity = _capacity(descriptor)
            if capacity is not None:
                for _ in range(_READ_AGAIN):
                    for half in _halves(descriptor, capacity):
                        if (content := _content(descriptor, half, capacity)) is not None:
                            return content
            elif not _had_halves(descriptor):
                with os.fdopen(os.dup(descriptor), "rb") as whole:
                    whole.seek(0)
                    return whole.read()
        finally:
            os.close(descriptor)
        raise IntegrityFailed(
            f"Expected {self.path} as it was written, found it damaged; restore it from a backup. "
            "A device's ledger has another way: `fedpeft client reset-ledger`."
        )

    def write(self, content: bytes) -> None:
        """Makes it hold exactly this, durably, or leaves it as it was; readable by the owner only.

        Raises:
            OSError: it cannot be written.
        """
        if len(content) > IN_PLACE_BYTES:
            self._known = None
            write_file(self.path, content, mode=PRIVATE)
        elif not self._replaced(content):
            self._make(content)

    def _replaced(self, content: bytes) -> bool:
        """Whether it could be replaced in place."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # there is none, or what is there is no file of ours
            return False
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:  # a hard link is somebody's copy
                return False
            if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):  # others may read it: a new file is the owner's
                return False
            capacity = _capacity(descriptor)
            used = None if capacity is None else self._used(descriptor, about.st_ino, capacity)
            if capacity is None or used is None or len(content) > capacity:
                return False
            half = _made(1 - used.place, used.sequence + 1, content)
            # Behind a content that this object did not replace an earlier, longer one may lie.
            known, self._known = self._known == (about.st_ino, used), None
            room = 0 if known else min(_HEAD.size + capacity, about.st_size - _offset(half.place, capacity))
            unused = used
            try:
                _put(descriptor, (_head(half) + content).ljust(room, b"\0"), _offset(half.place, capacity))
                (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)
            except BaseException:
                unused = half
                raise
            finally:  # nobody waits for the zeros: until they are on the disk the later half counts
                with contextlib.suppress(OSError):
                    _put(descriptor, bytes(_HEAD.size + unused.length), _offset(unused.place, capacity))
                    self._known = (about.st_ino, half) if unused is used else None
            return True
        finally:
            os.close(descriptor)

    def _used(self, descriptor: int, inode: int, capacity: int) -> _Half | None:
        """The half in use; None if there is none."""
        halves = _halves(descriptor, capacity)
        if halves and self._known == (inode, halves[0]):
            return halves[0]
        return next((half for half in halves if _content(descriptor, half, capacity) is not None), None)

    def _make(self, content: bytes) -> None:
        self._known = None
        header = _header(_capacity_for(len(content)))
        write_file(self.path, header + _head(_made(0, 1, content)) + content, mode=PRIVATE)


def _capacity_for(length: int) -> int:
    """Of a half that is to hold contents of about this many bytes."""
    capacity = max(_BLOCK - _HEAD.size, 1 << (length - 1).bit_length() if length else 0)
    return capacity + -(capacity + _HEAD.size) % _BLOCK


def _header(capacity: int) -> bytes:
    about = _MAGIC + capacity.to_bytes(8, "big")
    return _HEADER.pack(_MAGIC, capacity, hashlib.sha256(about).digest()).ljust(_BLOCK, b"\0")


def _capacity(descriptor: int) -> int | None:
    """What a half may hold; None if the file has none, or its header is not as it was written."""
    header = os.pread(descriptor, _BLOCK, 0)
    if len(header) < _BLOCK or not header.startswith(_MAGIC):
        return None
    capacity: int = _HEADER.unpack_from(header)[1]
    return capacity if capacity <= 2 * IN_PLACE_BYTES and header == _header(capacity) else None


def _had_halves(descriptor: int) -> bool:
    """Whether a file without a whole header once had one: it is damaged then, and no content of its own."""
    begin = os.pread(descriptor, len(_MAGIC), 0)
    if sum(found == meant for found, meant in zip(begin, _MAGIC, strict=False)) >= _NEAR:
        return True
    capacities = {_capacity_for(1 << exponent) for exponent in range(IN_PLACE_BYTES.bit_length())}
    return any(
        _content(descriptor, half, capacity) is not None
        for capacity in sorted(capacities)
        for half in _halves(descriptor, capacity)
    )


def _content(descriptor: int, half: _Half, capacity: int) -> bytes | None:
    """What a half holds; None if it is not what its head says."""
    content = os.pread(descriptor, half.length, _offset(half.place, capacity) + _HEAD.size)
    return content if _digest(half.sequence, content) == half.digest else None


def _halves(descriptor: int, capacity: int) -> list[_Half]:
    """The halves that may hold a content, the later one first."""
    found = []
    for place in (0, 1):
        head = os.pread(descriptor, _HEAD.size, _offset(place, capacity))
        if len(head) == _HEAD.size:
            sequence, length, digest = _HEAD.unpack(head)
            if sequence > 0 and length <= capacity:
                found.append(_Half(place, sequence, length, digest))
    return sorted(found, key=lambda half: -half.sequence)


def _offset(place: int, capacity: int) -> int:
    return _BLOCK + place * (_HEAD.size + capacity)


def _made(place: int, sequence: int, content: bytes) -> _Half:
    return _Half(place, sequence, len(content), _digest(sequence, content))


def _head(half: _Half) -> bytes:
    return _HEAD.pack(half.sequence, half.length, half.digest)


def _digest(sequence: int, content: bytes) -> bytes:
    return hashlib.sha256(struct.pack(">QQ", sequence, len(content)) + content).digest()


def _put(descriptor: int, payload: bytes, offset: int) -> None:
    """All of it: a full disk takes a part, and raises the next time."""
    left = memoryview(payload)
    while left:
        written = os.pwrite(descriptor, left, offset)
        offset, left = offset + written, left[written:]
