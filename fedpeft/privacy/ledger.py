"""What has been spent: an append-only file that is charged before anything is released.

Each line is one JSON object with its sequence number and the SHA-256 of the line before it; a charge returns only
once its line is on the disk. A crash may leave a torn last line: its charge never returned, so nothing was released
on it, and it is cut off. A whole line that does not fit the chain is an attack or a disk fault, and refused.

A chain cannot tell that it was cut short: an old copy of the file is a valid chain. So a second, tiny file, the
witness, holds how long the ledger was; keep it where a restore of the one does not restore the other. The order is
ledger, then witness: after a crash in between the ledger is one ahead, which is fine; a ledger behind its witness
is refused for good. A ledger that is gone while its witness stands is refused as well.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from fedpeft.errors import BudgetExhausted, IntegrityFailed, ResourceMissing
from fedpeft.files import append_whole, sync, write_file
from fedpeft.privacy.accountant import Budget, Release
from fedpeft.privacy.composition import Charge, Protected, total_epsilon
from fedpeft.privacy.sampled_gaussian import SampledRelease
from fedpeft.privacy.second_opinion import exceeds, opinions

__all__ = ["LedgerEntry", "PrivacyLedger", "read_ledger"]

START = "0" * 64
REMEDY = "Put the newest copy back. Starting anew would forget what was spent."


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One charge: its label, unique in the ledger, and what it paid for."""

    label: str
    release: Charge


class PrivacyLedger:
    """One ledger, held by one process. Close it, or use it in a ``with``.

    Args:
        path: the journal; made on first use.
        witness: the file that knows how long the journal was; another disk, or at least another folder.
        budget: what may be spent over the ledger's whole life.
        unit: whom the budget is about; None: the smallest unit that was charged.

    Raises:
        IntegrityFailed: a line was changed, or the journal is older than its witness.
        ResourceMissing: another process holds it.

    Guarantees:
        A charge that returned is never forgotten:
        tests/privacy/test_ledger.py::test_a_charge_that_returned_survives_a_kill_at_any_byte.
        An old copy is noticed: test_an_old_copy_of_the_journal_is_refused.
        No charge goes past the budget: test_a_charge_past_the_budget_is_refused_and_leaves_no_trace.
    """

    def __init__(self, path: Path, *, witness: Path, budget: Budget, unit: Protected | None = None) -> None:
        self.path, self.witness, self.budget, self.unit = path, witness, budget, unit
        path.parent.mkdir(parents=True, exist_ok=True)
        witness.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise ResourceMissing(f"Expected {path} for ourselves, found that another process holds it.") from error
        try:
            sync(path.parent)
            self._entries, self._head = self._load()
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Every charge, oldest first."""
        return tuple(self._entries)

    def spent(self) -> float:
        """Epsilon of all charges at the budget's delta: the larger of our accountant's and Opacus's."""
        return opinions(self._charges(), self.budget.delta, self.unit).charged

    def spent_by(self, chosen: Callable[[str], bool], delta: float) -> float:
        """Epsilon at ``delta`` of the charges whose label is chosen, by our accountant alone."""
        return total_epsilon(self.charged_by(chosen), delta)

    def charged_by(self, chosen: Callable[[str], bool]) -> tuple[Charge, ...]:
        """What was charged under the labels that are chosen, oldest first."""
        return tuple(entry.release for entry in self._entries if chosen(entry.label))

    def would_exceed(self, release: Charge, times: int = 1) -> bool:
        """Whether so many more of these would go past the budget."""
        return exceeds(self._charges((release,) * times), self.budget.epsilon, self.budget.delta, self.unit)

    def charge(self, label: str, release: Charge) -> None:
        """Pays for one release; it may be made once this returns, and under this label only.

        A label that was charged before is not charged again: a repeat of the same message releases nothing new.

        Raises:
            BudgetExhausted: it would go past the budget; nothing was charged.
            IntegrityFailed: the label was charged for something else.
        """
        for entry in self._entries:
            if entry.label == label:
                if entry.release != release:
                    raise IntegrityFailed(f"Expected {label!r} to be charged for one release, found two; {REMEDY}")
                return
        if self.would_exceed(release):
            after = opinions(self._charges((release,)), self.budget.delta, self.unit).charged
            raise BudgetExhausted(
                f"Expected to stay within epsilon={self.budget.epsilon:g} at delta={self.budget.delta:g}, found "
                f"{self.spent():.4g} spent and {after:.4g} after {label!r}; nothing was released. "
                "What is trained so far stands; more needs a larger budget, agreed with those whose data it is."
            )
        entry = LedgerEntry(label=label, release=release)
        line = _line(len(self._entries) + 1, self._head, entry)
        append_whole(self._descriptor, line)
        self._entries.append(entry)
        self._head = _digest(line)
        write_file(self.witness, f"{len(self._entries)} {self._head}\n".encode())

    def _charges(self, more: tuple[Charge, ...] = ()) -> tuple[Charge, ...]:
        return (*(entry.release for entry in self._entries), *more)

    def close(self) -> None:
        """Lets another process hold it; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> tuple[list[LedgerEntry], str]:
        payload = self.path.read_bytes()
        whole = payload.rfind(b"\n") + 1
        if whole < len(payload):
            os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)
        entries, heads = _chain(self.path, payload[:whole])
        self._compare(heads)
        return entries, heads[-1]

    def _compare(self, heads: list[str]) -> None:
        """The journal must go on from where the witness saw it."""
        if not self.witness.exists():
            if len(heads) > 2:  # one ahead is a crash between the first line and the first witness
                raise IntegrityFailed(f"{self.witness}: expected the ledger's witness, found none. {REMEDY}")
            return
        count, _, head = self.witness.read_text(encoding="ascii").strip().partition(" ")
        seen = int(count) if count.isdigit() else -1
        if not 0 <= seen < len(heads) or heads[seen] != head or len(heads) - 1 > seen + 1:
            raise IntegrityFailed(
                f"{self.path}: expected the ledger with charge {count} that {self.witness} saw, found one of "
                f"{len(heads) - 1} charges: an older or another copy. {REMEDY}"
            )


def read_ledger(path: Path) -> tuple[LedgerEntry, ...]:
    """Every charge in a journal, for a report: the chain is checked, its witness and its lock are not.

    Raises:
        IntegrityFailed: a line does not continue the chain.
    """
    payload = path.read_bytes() if path.exists() else b""
    return tuple(_chain(path, payload[: payload.rfind(b"\n") + 1])[0])


def _chain(path: Path, payload: bytes) -> tuple[list[LedgerEntry], list[str]]:
    """The entries of whole lines, and the digest after each, beginning with that of nothing."""
    entries: list[LedgerEntry] = []
    heads = [START]
    for line in payload.splitlines(keepends=True):
        entry = _read(line)
        if entry is None or _line(len(entries) + 1, heads[-1], entry) != line:
            raise IntegrityFailed(
                f"{path}: expected line {len(entries) + 1} to continue the chain, found another. {REMEDY}"
            )
        entries.append(entry)
        heads.append(_digest(line))
    return entries, heads


def _line(sequence: int, previous: str, entry: LedgerEntry) -> bytes:
    release = asdict(entry.release)
    if release.get("unit") == "example":  # as ledgers were written before there were others
        del release["unit"]
    record = {"sequence": sequence, "previous": previous, "label": entry.label, "release": release}
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _read(line: bytes) -> LedgerEntry | None:
    try:
        record = json.loads(line)
        kind = SampledRelease if "sampling_rate" in record["release"] else Release
        return LedgerEntry(label=record["label"], release=kind(**record["release"]))
    except (ValueError, KeyError, TypeError):
        return None


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
