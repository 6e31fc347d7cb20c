"""What a device keeps of one round for the next: its local blocks and its SCAFFOLD controls. It never leaves it.

A round may be repeated, after an aborted attempt or a killed coordinator, and must then begin where it began before.
So both what a round began with and what it left are kept, under the digest of the run's history before that round:
after a fork of the history, or in another run of the same name, there is nothing to begin with. Nothing older is kept.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.round.device.records import KeptBlocks, kept
from fedpeft.round.local import DeviceStore
from fedpeft.round.messages import BlockPayload
from fedpeft.round.work import Work
from fedpeft.wire import encode

__all__ = ["RoundMemory"]

Vector = npt.NDArray[np.float32]
KEY = "kept-by-history"


class RoundMemory:
    """One device's memory of its last round.

    Args:
        store: where it lies; must outlive the process on a real device.
    """

    def __init__(self, store: DeviceStore) -> None:
        self._store = store

    def begin(self, work: Work) -> dict[BlockId, Vector]:
        """What this round begins with; empty in a device's first round of a run, and where the history is another."""
        found = kept(self._store, KEY, KeptBlocks)
        if found is None or found.history not in {work.history, *work.earlier}:
            return {}
        parts = found.before if found.history == work.history else found.after
        return {part.block_id: np.frombuffer(part.values, "<f4").astype(np.float32) for part in parts}

    def keep(self, work: Work, after: Mapping[BlockId, Vector]) -> None:
        """Replace what is kept by what this round left."""
        before = self.begin(work)
        record = KeptBlocks(history=work.history, before=_payloads(before), after=_payloads(after))
        self._store.write(KEY, encode(record))


def _payloads(vectors: Mapping[BlockId, Vector]) -> tuple[BlockPayload, ...]:
    return tuple(BlockPayload(block_id=key, values=vector.astype("<f4").tobytes()) for key, vector in vectors.items())
