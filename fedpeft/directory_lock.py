"""One owner a state directory: an advisory lock that the operating system releases when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fedpeft.errors import ResourceMissing

__all__ = ["DirectoryLock", "holder", "in_use", "short_turn"]

_NAME = "run.lock"


class DirectoryLock:
    """Held from construction to ``release``.

    Args:
        folder: the directory that is written to; it exists.

    Raises:
        ResourceMissing: another process holds it; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise in_use(folder, pid) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets others in; may be called again."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)  # closing releases the lock
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def in_use(folder: Path, pid: str) -> ResourceMissing:
    """The refusal of a directory to which another process writes."""
    return ResourceMissing(
        f"Expected no other process at {folder}, found process {pid} writing to it; wait until it ends, or stop it."
    )


def holder(folder: Path) -> str | None:
    """The process that writes to the directory now; None when nobody does. Takes no lock that could disturb it."""
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


@contextmanager
def short_turn(folder: Path) -> Iterator[None]:
    """Waits for others who change a few files of a directory together, then is alone with them.

    Args:
        folder: it exists; a lock of another kind than ``DirectoryLock``'s, so its owner may take a turn too.
    """
    descriptor = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
