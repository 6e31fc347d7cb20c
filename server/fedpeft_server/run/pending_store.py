"""Keeps one round in its run directory while it is being opened, and pays for its sum.

The order: the round is pending on the disk, then its release is charged, then the devices hear of the survivors. A
crash in between leaves a pending round that is charged when it goes on; so a round is charged once, whatever crashes
and however many attempts came before.
"""

from fedpeft.ids import RoundId
from fedpeft.round.pending import Note, PendingRound, StageClosed, dump_note
from fedpeft.wire import encode
from fedpeft_server.privacy.client_level import ClientPrivacy
from fedpeft_server.run.run_directory import RunDirectory

__all__ = ["ChargingPendingStore"]


class ChargingPendingStore:
    """Implements ``fedpeft.round.pending.PendingStore``.

    Args:
        run: the run directory.
        round_id: the round.
        privacy: of a run under client-level privacy.
        label: of the charge; one per round.
        devices: how many were asked; the noise follows from it.
    """

    def __init__(
        self, run: RunDirectory, round_id: RoundId, privacy: ClientPrivacy | None, *, label: str, devices: int
    ) -> None:
        self._run, self._round_id, self._privacy = run, round_id, privacy
        self._label, self._devices = label, devices

    def keep(self, pending: PendingRound) -> None:
        """See ``PendingStore``."""
        self._run.pending.keep(self._round_id, encode(pending))
        self.charge()

    def note(self, note: Note) -> None:
        """See ``PendingStore``."""
        self._run.pending.note(dump_note(note), is_durable=isinstance(note, StageClosed))

    def charge(self) -> None:
        """Pays for the round's release, once.

        Raises:
            BudgetExhausted: it would go past the budget; the sum stays masked.
        """
        if self._privacy is not None:
            spent = self._privacy.charge(self._label, self._devices)
            self._run.record("privacy.charged", round_id=self._round_id, detail={"epsilon_spent": spent})
