"""Where a device keeps its state of each run, so that a crash at any moment loses nothing and repeats nothing.

A step is saved before its reply is sent; after a restart the same request gets the same reply. The file holds the
attempt's secrets, so it is sealed with AES-256-GCM under a key derived from the device's identity, readable by its
owner only, and replaced at every step (``fedpeft.kept_file``): when a round closes, its root is gone. Another file, the
marks, remembers how far the device has gone in every run it ever heard of, so that a state file put back from a backup
is refused, and so that a lost ledger is noticed. Putting all of it back cannot be noticed by a process that starts
afterwards; docs/threat-model.md says so.
"""

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.files import sync
from fedpeft.kept_file import KeptFile
from fedpeft.secagg.device_state import DeviceState, HighWaterMark, Masked, dump_state, load_state, mark_of
from fedpeft.secagg.primitives import NONCE_SIZE, IdentityKey, digest, hkdf, open_sealed, seal
from fedpeft.wire import OtherVersion, decode, encode, message

__all__ = ["FileLedger", "Ledger", "MemoryLedger"]

MARKS = "marks"


class Ledger(Protocol):
    """What a device session needs of its memory. ``save`` returns only when the state would survive a power cut."""

    def load(self, run_id: str) -> DeviceState | None:
        """The run's last saved state; None if there is none."""
        ...

    def save(self, run_id: str, state: DeviceState) -> None:
        """Replaces the run's state."""
        ...

    def mark(self, run_id: str) -> HighWaterMark | None:
        """How far the device has gone in the run."""
        ...

    @property
    def barrier(self) -> bool:
        """Whether an earlier ledger was lost: this device may have signed in the first round it hears of."""
        ...

    def sit_out(self, run_id: str, mark: HighWaterMark) -> None:
        """Remembers a round that this device takes no part in, as if it had signed."""
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
        self._marks: dict[str, HighWaterMark | None] = {}

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        return self._states.get(run_id)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        if isinstance(state, Masked) and not self._repeats:
            state = replace(state, reply=replace(state.reply, vectors=()))
        self._states[run_id] = state
        self._marks[run_id] = mark_of(state, self._marks.get(run_id))

    def mark(self, run_id: str) -> HighWaterMark | None:
        """See ``Ledger``."""
        return self._marks.get(run_id)

    @property
    def barrier(self) -> bool:
        """See ``Ledger``: what dies with its process is never opened anew."""
        return False

    def sit_out(self, run_id: str, mark: HighWaterMark) -> None:
        """See ``Ledger``."""
        self._marks[run_id] = mark


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a ledger remembers of one run, whatever became of its state.

    Args:
        run_id: which.
        sequence: of the last state that was saved.
        round_id, attempt, agreed, signed, history: see ``HighWaterMark``.
    """

    run_id: str
    sequence: int
    round_id: int
    attempt: int
    agreed: bool
    signed: bytes
    history: bytes


@message(0x0386, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """The ledger's memory of every run; ``barrier``: an earlier one was lost."""

    barrier: bool
    runs: tuple[_Run, ...] = ()


class FileLedger:
    """One file for the marks of all runs and one for each open round's state, in a directory of mode 0700; one process.

    A ledger is made once, with the device's enrolment (``create``). One that is gone is a loss, not a beginning: the
    device may have signed for rounds that it does not remember.

    Args:
        directory: where it is.
        identity: the device's enrolled key; the sealing key is derived from it.
        entropy: for the sealing nonces.
        new: make it if there is none: for devices that are as young as their directory (simulation).

    Raises:
        IntegrityFailed: there is no ledger; or, on ``load`` or ``mark``, a file is not what this device wrote last.
    """

    def __init__(
        self, directory: Path, identity: IdentityKey, entropy: Entropy = os_entropy, *, new: bool = False
    ) -> None:
        self._directory, self._entropy = directory, entropy
        self._key = hkdf(identity.secret_bytes(), b"", "ledger")
        self._latest: dict[str, int] = {}
        self._files: dict[str, KeptFile] = {}
        self._lock = threading.Lock()
        if new and not (directory / MARKS).exists():
            self._begin(barrier=False)
        self._read_marks()

    @classmethod
    def create(
        cls, directory: Path, identity: IdentityKey, entropy: Entropy = os_entropy, *, barrier: bool = False
    ) -> Self:
        """A new ledger; whatever was there before is gone.

        Args:
            directory, identity, entropy: see the class.
            barrier: of a device that may have signed before: in every run it sits out the first round it hears of.
        """
        ledger = cls.__new__(cls)
        ledger._directory, ledger._entropy = directory, entropy
        ledger._key = hkdf(identity.secret_bytes(), b"", "ledger")
        ledger._latest, ledger._files, ledger._lock = {}, {}, threading.Lock()
        ledger._begin(barrier=barrier)
        return ledger

    @property
    def barrier(self) -> bool:
        """See ``Ledger``."""
        return self._read_marks().barrier

    def expect_whole(self) -> None:
        """Returns when every state in it can be read, of whatever run.

        Raises:
            IntegrityFailed: one cannot; says what to do.
        """
        for run in self._read_marks().runs:
            self.load(run.run_id)
        with self._lock:
            for path in self._directory.glob("*.state"):
                self._file(path.name).read()

    def drop_damaged(self) -> tuple[str, ...]:
        """Removes every known run's state that cannot be read, counts the run's last round as signed; names the runs.

        What left the device is in the marks: a state that is newer than its mark has answered nothing.

        Raises:
            IntegrityFailed: the marks cannot be read, or a state of a run that they do not know.
        """
        dropped = []
        for run in self._read_marks().runs:
            try:
                self.load(run.run_id)
            except IntegrityFailed:
                with self._lock:
                    self._write_mark(run.run_id, run.sequence, replace(_known(run), agreed=True))
                    self._files.pop(_name(run.run_id), None)
                    (self._directory / _name(run.run_id)).unlink()
                    sync(self._directory)
                dropped.append(run.run_id)
        self.expect_whole()
        return tuple(dropped)

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        with self._lock:
            sealed = self._file(_name(run_id)).read()
            if sealed is None:
                return None
            sequence = int.from_bytes(sealed[:8], "big")
            plaintext = open_sealed(self._key, sealed[8:20], sealed[20:], self._bound(run_id, sequence))
            if plaintext is None:
                raise IntegrityFailed(self._text("a state sealed by this device, found another"))
            run = self._run(run_id)
            known = max(self._latest.get(run_id, 0), run.sequence if run else 0)
            if sequence < known:
                raise IntegrityFailed(self._text(f"state {known} or later, found {sequence}: rolled back"))
            return load_state(plaintext)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        with self._lock:
            run = self._run(run_id)
            sequence = max(run.sequence if run else 0, self._latest.get(run_id, 0)) + 1
            nonce = self._entropy(NONCE_SIZE)
            sealed = seal(self._key, nonce, dump_state(state), self._bound(run_id, sequence))
            # State first: after a crash in between, the state is newer than the mark, and its reply never left.
            self._file(_name(run_id)).write(sequence.to_bytes(8, "big") + nonce + sealed)
            self._latest[run_id] = sequence
            self._write_mark(run_id, sequence, mark_of(state, _known(run) if run else None))

    def mark(self, run_id: str) -> HighWaterMark | None:
        """See ``Ledger``."""
        with self._lock:
            return _known(run) if (run := self._run(run_id)) else None

    def sit_out(self, run_id: str, mark: HighWaterMark) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._write_mark(run_id, self._latest.get(run_id, 0), mark)

    def _file(self, name: str) -> KeptFile:
        return self._files.setdefault(name, KeptFile(self._directory / name))

    def _begin(self, *, barrier: bool) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for state in self._directory.glob("*.state"):
            state.unlink()  # of a ledger before this one: nothing says how far it had gone
        sync(self._directory)  # before marks that know of none of them: one that came back would be answered again
        self._write_marks(_Marks(barrier=barrier))

    def _read_marks(self) -> _Marks:
        sealed = self._file(MARKS).read()
        if sealed is None:
            raise IntegrityFailed(self._text("the ledger that was made at enrolment, found none"))
        text = open_sealed(self._key, sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], self._bound("", 0))
        if text is None:
            raise IntegrityFailed(self._text("marks sealed by this device, found others"))
        try:
            return decode(text, _Marks)
        except OtherVersion as error:
            raise IntegrityFailed(self._text("marks of this version of fedpeft, found an earlier one's")) from error

    def _write_marks(self, marks: _Marks) -> None:
        nonce = self._entropy(NONCE_SIZE)
        sealed = seal(self._key, nonce, encode(marks), self._bound("", 0))
        self._file(MARKS).write(nonce + sealed)

    def _run(self, run_id: str) -> _Run | None:
        return next((run for run in self._read_marks().runs if run.run_id == run_id), None)

    def _write_mark(self, run_id: str, sequence: int, mark: HighWaterMark | None) -> None:
        marks = self._read_marks()
        mark = mark or HighWaterMark(round_id=0, attempt=0, agreed=False)
        run = _Run(
            run_id=run_id, sequence=sequence, round_id=mark.round_id, attempt=mark.attempt, agreed=mark.agreed,
            signed=mark.signed, history=mark.history,
        )  # fmt: skip
        others = tuple(known for known in marks.runs if known.run_id != run_id)
        self._write_marks(replace(marks, runs=(*others, run)))

    def _bound(self, run_id: str, sequence: int) -> bytes:
        return digest("ledger", run_id.encode(), sequence.to_bytes(8, "big"))

    def _text(self, expected: str) -> str:
        return (
            f"{self._directory}: expected {expected}. Bring it back from where it went, if it is the newest; else run "
            "`fedpeft client reset-ledger`: this device then sits out one round of each run."
        )


def _known(run: _Run) -> HighWaterMark:
    return HighWaterMark(
        round_id=run.round_id, attempt=run.attempt, agreed=run.agreed, signed=run.signed, history=run.history
    )


def _name(run_id: str) -> str:
    return f"{digest('ledger-file', run_id.encode()).hex()[:32]}.state"
