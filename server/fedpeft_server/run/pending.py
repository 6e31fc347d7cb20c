"""The round that is being opened, on the disk: from before its devices hear of the survivors until it is committed.

    pending/r0004           what finishing round 4 needs (``fedpeft.round.pending``), mode 0600
    pending/notes.jsonl     what was heard since, one line a note

Whoever reads these two has what the coordinator has: the masked sums and, with enough revealed shares, the opened ones.
So the folder is 0700 and lives as short as the round. A round is pending when its file is there; the notes alone mean
nothing. Nothing here knows what the bytes mean.
"""

import json
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, sync, write_file
from fedpeft.ids import RoundId
from fedpeft_server.run import journal

__all__ = ["Kept", "PendingFolder", "is_pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A pending round as it was found.

    Args:
        round_id: which.
        state: as ``keep`` was given it.
        notes: as ``note`` was given them, oldest first; a power cut may have taken the last ones that were not durable.
    """

    round_id: RoundId
    state: bytes
    notes: tuple[bytes, ...]


class PendingFolder:
    """``pending/`` of one run directory, which is held for writing.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "pending"
        self._notes = journal.Journal(self._folder / "notes.jsonl")

    def keep(self, round_id: RoundId, state: bytes) -> None:
        """Makes a round pending; durable when it returns.

        Raises:
            OSError: the disk is full or gone; then no round is pending.
        """
        self.clear()
        self._folder.mkdir(mode=0o700)
        os.close(os.open(self._notes.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
        sync(self._folder.parent)
        write_file(self._file(round_id), state, mode=PRIVATE)

    def note(self, note: bytes, *, is_durable: bool) -> None:
        """Adds a note to the pending round.

        Args:
            note: any bytes.
            is_durable: whether to return only once it, and every note before it, is on the disk.
        """
        self._notes.append(json.dumps({"note": b64encode(note).decode()}), durable=is_durable)

    def read(self) -> Kept | None:
        """The pending round; None when there is none.

        Raises:
            IntegrityFailed: the notes are not what was written.
        """
        files = _rounds(self._folder)
        if not files:
            return None
        self._notes.truncate_torn()
        try:
            notes = tuple(b64decode(json.loads(line)["note"], validate=True) for line in self._notes.lines())
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityFailed(f"{self._notes.path}: expected notes of a pending round, found another.") from error
        return Kept(round_id=RoundId(int(files[0].name[1:])), state=files[0].read_bytes(), notes=notes)

    def clear(self) -> None:
        """Forgets the pending round: it is committed, and what opened it must not outlive that."""
        for file in self._folder.glob("r[0-9]*"):
            file.unlink()
            sync(self._folder)  # first, and durably: notes without it mean nothing, it without them would
        journal.remove_folder(self._folder)

    def _file(self, round_id: RoundId) -> Path:
        return self._folder / f"r{round_id:04d}"


def is_pending(run: Path) -> bool:
    """Whether a round of the run in this directory was being opened when it was left; reads nothing of it."""
    return bool(_rounds(run / "pending"))


def _rounds(folder: Path) -> list[Path]:
    return sorted(folder.glob("r[0-9]*"))
