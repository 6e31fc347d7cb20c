"""What a device keeps of its last runs, to judge what comes next: of the one at hand, and of a few from before it.

A round of another run in between must not make a device forget: its coordinator would only have to ask for one, and
could then send anything. Crash-safe: a record is never gone before the one that takes its place is there.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fedpeft.round.device.records import kept, run_key
from fedpeft.round.local import DeviceStore
from fedpeft.wire import encode, message

__all__ = ["ASIDE", "LastRuns", "OfARun"]

ASIDE = 3
"""Other runs that may come in between: a coordinator that asks for rounds of more could as well leave out a round of
this one (docs/threat-model.md, "Missed rounds")."""


class OfARun(Protocol):
    """A store record that says which run it is of."""

    @property
    def run_id(self) -> str:
        """Which."""
        ...


R = TypeVar("R", bound=OfARun)


@message(0x018B, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Store record: the runs whose records were set aside, the last one last."""

    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRuns(Generic[R]):
    """One kind of record, of the last ``ASIDE + 1`` runs that one was kept of.

    Args:
        at_hand: store key of the run that a record was kept of last.
        aside: of the others, each under a key of its run (``run_key``).
        index: store key of the list of those.
        nothing: takes the place of a record that is let go; of no run.
    """

    at_hand: str
    aside: str
    index: str
    nothing: R

    def of(self, store: DeviceStore, run_id: str) -> R | None:
        """What is kept of a run; None: nothing, or not any more."""
        found = (kept(store, key, type(self.nothing)) for key in (self.at_hand, run_key(run_id, self.aside)))
        return next((record for record in found if record is not None and record.run_id == run_id), None)

    def keep(self, store: DeviceStore, record: R) -> None:
        """Replaces what is kept of the record's run; of another run that was at hand it is set aside first."""
        before = kept(store, self.at_hand, type(self.nothing))
        if before is not None and before.run_id != record.run_id:
            self._set_aside(store, before, to_come=record.run_id)
        store.write(self.at_hand, encode(record))

    def _set_aside(self, store: DeviceStore, record: R, *, to_come: str) -> None:
        seen = kept(store, self.index, SetAside)
        runs = [run_id for run_id in (seen.runs if seen else ()) if run_id != record.run_id]
        # The run that comes back is at hand next, so it takes no other's place; what is aside of it stays until then.
        others = [run_id for run_id in runs if run_id != to_come]
        gone = others[: max(0, len(others) - ASIDE + 1)]
        store.write(run_key(record.run_id, self.aside), encode(record))
        for run_id in gone:
            store.write(run_key(run_id, self.aside), encode(self.nothing))
        left = [run_id for run_id in runs if run_id not in gone]
        store.write(self.index, encode(SetAside(runs=(*left, record.run_id))))
