"""Writes that survive a power cut, and journals whose torn last line is known for what it is.

A file is replaced whole (temporary file, fsync, rename, fsync of the directory) or appended to by whole
lines (one write, fsync). So after a crash a replaced file is the old one or the new one, and a journal is
a prefix of what was appended, perhaps with one torn line at its end.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fedpeft.errors import IntegrityFailed
from fedpeft.files import append_whole, sync, write_file

__all__ = ["Journal", "publish_folder", "recover_folder", "remove_folder", "write_folder"]


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Makes the new folder ``path`` hold exactly ``files``, all of them or none."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove_folder(temporary)
    try:
        temporary.mkdir()
        for name, payload in files.items():
            write_file(temporary / name, payload)
    except OSError:
        remove_folder(temporary)  # a full disk has no room for half a folder
        raise
    os.replace(temporary, path)
    sync(path.parent)


def publish_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replaces the folder ``path`` by what ``write`` puts into an empty folder.

    A crash leaves the old folder, the new one, or the old one beside its place, where ``recover_folder``
    finds it.
    """
    temporary, previous = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    remove_folder(temporary)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
    except Exception:
        remove_folder(temporary)
        raise
    remove_folder(previous)
    if path.exists():
        os.replace(path, previous)
    os.replace(temporary, path)
    sync(path.parent)
    remove_folder(previous)


def recover_folder(path: Path) -> None:
    """Undoes what a crash left of ``publish_folder``."""
    temporary, previous = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if previous.exists() and not path.exists():
        os.replace(previous, path)
    remove_folder(temporary)
    remove_folder(previous)


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it; nothing when there is none."""
    if path.exists():
        shutil.rmtree(path)


class Journal:
    """A file of JSON objects, one per line, only ever appended to.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: str, *, durable: bool) -> None:
        """Adds one line; all of it or, on an error such as a full disk, nothing.

        Args:
            line: one JSON object without a newline.
            durable: whether to return only once it is on the disk.
        """
        with self.path.open("ab", buffering=0) as file:
            first = file.tell() == 0
            append_whole(file.fileno(), line.encode() + b"\n", durable=durable)
        if durable and first:
            sync(self.path.parent)

    def lines(self) -> tuple[str, ...]:
        """Every whole line; a torn last one is left out.

        Raises:
            IntegrityFailed: a line other than the last is not JSON.
        """
        return self._read()[0]

    def truncate_torn(self) -> int:
        """Cuts a torn last line off the file and returns how many bytes that were."""
        _, whole, size = self._read()
        if whole < size:
            with self.path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return size - whole

    def _read(self) -> tuple[tuple[str, ...], int, int]:
        """The whole lines, how many bytes they take, and the file's size."""
        if os.path.lexists(self.path) and not self.path.is_file():
            raise IntegrityFailed(
                f"Expected {self.path} as the run wrote it, found something that is no file; restore it from a copy."
            )
        payload = self.path.read_bytes() if self.path.exists() else b""
        rows = payload.split(b"\n")
        last = len(rows) - 2  # the index of the last row that a newline ends
        whole = 0
        lines: list[str] = []
        for index, row in enumerate(rows[:-1]):
            if not _is_object(row):
                if index == last and not rows[-1]:
                    break
                raise IntegrityFailed(
                    f"{self.path}: expected a JSON object in line {index + 1}, found {row[:40]!r}; "
                    "the file was changed from outside: restore it from a copy."
                )
            lines.append(row.decode())
            whole += len(row) + 1
        return tuple(lines), whole, len(payload)


def _is_object(row: bytes) -> bool:
    try:
        return isinstance(json.loads(row), dict)
    except (ValueError, RecursionError):
        return False
