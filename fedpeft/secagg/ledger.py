"""Where a device keeps its state of each run, so that a crash at any moment loses nothing and repeats nothing.

A step is saved before its reply is sent; after a restart the same request gets the same reply. The file holds the
attempt's secrets, so it is sealed with AES-256-GCM under a key derived from the device's identity, readable by its
owner only, and replaced (never appended to) at every step: when a round closes, its root is gone. A second file
remembers how far the device had gone, so that a state file put back from a backup is refused. Putting both files back
cannot be noticed by a process that starts afterwards; docs/threat-model.md says so.
"""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, sync, write_file
from fedpeft.secagg.device_state import DeviceState, Mark, Masked, dump_state, load_state, mark_of
from fedpeft.secagg.primitives import IdentityKey, digest, hkdf, open_box, seal

__all__ = ["FileLedger", "Ledger", "MemoryLedger"]

NONCE_SIZE = 12


class Ledger(Protocol):
    """What a device session needs of its memory. ``save`` returns only when the state would survive a power cut."""

    def load(self, run_id: str) -> DeviceState | None:
        """The run's last saved state; None if there is none."""
        ...

    def save(self, run_id: str, state: DeviceState) -> None:
        """Replaces the run's state."""
        ...

    def mark(self, run_id: str) -> Mark | None:
        """How far the device has gone in the run."""
        ...

    def forget(self, run_id: str) -> None:
        """Drops the state, with every secret in it, and keeps the mark."""
        ...


class MemoryLedger:
    """For simulation and tests: as long as the process lives.

    Args:
        repeats: keep the masked vectors so that a repeated request gets them again. A transport that loses nothing
            does without, and a thousand simulated devices then fit in memory.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        self._repeats = repeats
        self._states: dict[str, DeviceState] = {}
        self._marks: dict[str, Mark | None] = {}

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        return self._states.get(run_id)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        if isinstance(state, Masked) and not self._repeats:
            state = replace(state, reply=replace(state.reply, vectors=()))
        self._states[run_id] = state
        self._marks[run_id] = mark_of(state, self._marks.get(run_id))

    def mark(self, run_id: str) -> Mark | None:
        """See ``Ledger``."""
        return self._marks.get(run_id)

    def forget(self, run_id: str) -> None:
        """See ``Ledger``."""
        self._states.pop(run_id, None)


class FileLedger:
    """Two files a run in a directory of mode 0700; one process at a time.

    Args:
        directory: made if it is missing.
        identity: the device's enrolled key; the sealing key is derived from it.
        entropy: for the sealing nonces.

    Raises:
        IntegrityFailed: on ``load`` or ``mark``, if a file is not what this device wrote last.
    """

    def __init__(self, directory: Path, identity: IdentityKey, entropy: Entropy = os_entropy) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory, self._entropy = directory, entropy
        self._key = hkdf(identity.secret_bytes(), b"", "ledger")
        self._latest: dict[str, int] = {}
        self._lock = threading.Lock()

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        with self._lock:
            sealed = _read(self._path(run_id, "state"))
            if sealed is None:
                return None
            sequence = int.from_bytes(sealed[:8], "big")
            plaintext = open_box(self._key, sealed[8:20], sealed[20:], self._bound(run_id, sequence))
            if plaintext is None:
                raise IntegrityFailed(self._text(run_id, "a state sealed by this device, found another"))
            known = max(self._latest.get(run_id, 0), self._read_mark(run_id)[0])
            if sequence < known:
                raise IntegrityFailed(self._text(run_id, f"state {known} or later, found {sequence}: rolled back"))
            return load_state(plaintext)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        with self._lock:
            last, mark = self._read_mark(run_id)
            sequence = max(last, self._latest.get(run_id, 0)) + 1
            nonce = self._entropy(NONCE_SIZE)
            box = seal(self._key, nonce, dump_state(state), self._bound(run_id, sequence))
            # State first: after a crash in between, the state is newer than the mark, which is fine.
            write_file(self._path(run_id, "state"), sequence.to_bytes(8, "big") + nonce + box, mode=PRIVATE)
            self._latest[run_id] = sequence
            self._write_mark(run_id, sequence, mark_of(state, mark))

    def mark(self, run_id: str) -> Mark | None:
        """See ``Ledger``."""
        with self._lock:
            return self._read_mark(run_id)[1]

    def forget(self, run_id: str) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._path(run_id, "state").unlink(missing_ok=True)
            sync(self._directory)

    def _read_mark(self, run_id: str) -> tuple[int, Mark | None]:
        sealed = _read(self._path(run_id, "mark"))
        if sealed is None:
            return 0, None
        text = open_box(self._key, sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], self._bound(run_id, 0))
        if text is None:
            raise IntegrityFailed(self._text(run_id, "a mark sealed by this device, found another"))
        fields = json.loads(text)
        sequence = int(fields.pop("sequence"))
        return sequence, Mark(**fields) if fields else None

    def _write_mark(self, run_id: str, sequence: int, mark: Mark | None) -> None:
        fields: dict[str, int | bool] = {"sequence": sequence}
        if mark is not None:
            fields |= {"round_id": mark.round_id, "attempt": mark.attempt, "agreed": mark.agreed}
        nonce = self._entropy(NONCE_SIZE)
        sealed = seal(self._key, nonce, json.dumps(fields).encode(), self._bound(run_id, 0))
        write_file(self._path(run_id, "mark"), nonce + sealed, mode=PRIVATE)

    def _path(self, run_id: str, kind: str) -> Path:
        return self._directory / f"{digest('ledger-file', run_id.encode()).hex()[:32]}.{kind}"

    def _bound(self, run_id: str, sequence: int) -> bytes:
        return digest("ledger", run_id.encode(), sequence.to_bytes(8, "big"))

    def _text(self, run_id: str, expected: str) -> str:
        return f"{self._path(run_id, 'state')}: expected {expected}. Delete both files of run {run_id} to sit it out."


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
