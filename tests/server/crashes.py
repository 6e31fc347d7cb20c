"""Kills at every durable write: counts what a run makes durable, and raises or ends the process at one of them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from fedpeft import files
from fedpeft.round.coordinator import SecureSum
from fedpeft_server.run import begun, journal, pending, run_directory

__all__ = ["Writes", "watching_sums"]


class Writes:
    """Calls ``strike`` right after the ``fatal``-th durable write; 0: never. ``made`` lists what was written."""

    def __init__(self, strike: Callable[[str], None], fatal: int = 0) -> None:
        self._strike, self._fatal = strike, fatal
        self.made: list[str] = []

    def _did(self, what: str) -> None:
        self.made.append(what)
        if len(self.made) == self._fatal:
            self._strike(what)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While open, every file replaced, line appended and file removed by the coordinator counts."""

        def write_file(path: Path, payload: bytes, **mode: int) -> None:
            files.write_file(path, payload, **mode)
            self._did(path.name)

        def append_whole(descriptor: int, payload: bytes, *, durable: bool = True) -> None:
            files.append_whole(descriptor, payload, durable=durable)
            if b'"note"' in payload or durable:
                self._did("line")

        def remove_folder(path: Path) -> None:
            removed(path)
            self._did(f"removed {path.name}")

        def unlink(path: Path, missing_ok: bool = False) -> None:
            unlinked(path, missing_ok)
            if path.parent.name == "pending":
                self._did(f"unlinked {path.name}")

        removed, unlinked = journal.remove_folder, Path.unlink
        with (
            patch.object(run_directory, "write_file", write_file),
            patch.object(begun, "write_file", write_file),
            patch.object(pending, "write_file", write_file),
            patch.object(journal, "write_file", write_file),
            patch.object(journal, "append_whole", append_whole),
            patch.object(journal, "remove_folder", remove_folder),
            patch.object(Path, "unlink", unlink),
        ):
            yield


@contextmanager
def watching_sums(saw: Callable[[int, tuple[int, ...], dict[str, list[float]]], None]) -> Iterator[None]:
    """Tells of every sum that the coordinator gets to see: its round, whose inputs it holds, and the values."""
    closing = SecureSum.close_stage

    def close_stage(self: SecureSum) -> object:
        end = closing(self)
        if end is not None and hasattr(end, "sums"):
            values = {str(block): list(entry.values) for block, entry in end.sums.items()}
            saw(self.spec.round_id, tuple(sorted(end.survivors)), values)
        return end

    with patch.object(SecureSum, "close_stage", close_stage):
        yield


def kill(_what: str) -> None:
    """Ends this process as the system does when memory runs out."""
    os.kill(os.getpid(), 9)
