"""What a device keeps of one round for the next: its local blocks and its SCAFFOLD controls. It never leaves it.

A round may be repeated, after an aborted attempt or a killed coordinator, and must then begin where it began before.
So both what a round began with and what it left are kept, under the round's first step; nothing older.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.round.local import DeviceStore
from fedpeft.round.messages import BlockPayload
from fedpeft.wire import decode, encode, message

__all__ = ["RoundMemory"]

Vector = npt.NDArray[np.float32]
KEY = "kept-between-rounds"


@message(0x0183)
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlocks:
    """Store record: ``before`` is what the round with ``first_step`` began with, ``after`` what it left."""

    run_id: str
    first_step: int
    before: tuple[BlockPayload, ...]
    after: tuple[BlockPayload, ...]


class RoundMemory:
    """One device's memory of its last round.

    Args:
        store: where it lies; must outlive the process on a real device.
    """

    def __init__(self, store: DeviceStore) -> None:
        self._store = store

    def begin(self, run_id: str, first_step: int) -> dict[BlockId, Vector]:
        """What the round that takes its first step here begins with; empty in a device's first round of a run."""
        kept = self._kept(run_id)
        if kept is None or first_step < kept.first_step:
            return {}
        parts = kept.before if first_step == kept.first_step else kept.after
        return {part.block_id: np.frombuffer(part.values, "<f4").astype(np.float32) for part in parts}

    def keep(self, run_id: str, first_step: int, after: Mapping[BlockId, Vector]) -> None:
        """Replace what is kept by what this round left."""
        before = self.begin(run_id, first_step)
        record = KeptBlocks(run_id=run_id, first_step=first_step, before=_payloads(before), after=_payloads(after))
        self._store.write(KEY, encode(record))

    def _kept(self, run_id: str) -> KeptBlocks | None:
        payload = self._store.read(KEY)
        kept = decode(payload, KeptBlocks) if payload else None
        return kept if kept is not None and kept.run_id == run_id else None


def _payloads(vectors: Mapping[BlockId, Vector]) -> tuple[BlockPayload, ...]:
    return tuple(BlockPayload(block_id=key, values=vector.astype("<f4").tobytes()) for key, vector in vectors.items())
