"""What a device keeps between two messages, and from one round to the next: records of its store."""

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedpeft.privacy import Mechanism
from fedpeft.round.local import DeviceStore, LocalResult
from fedpeft.round.messages import BlockDigest, BlockPayload, Link
from fedpeft.wire import OtherVersion, decode, message

__all__ = [
    "DRAWS",
    "ForkSeen",
    "HeldBlocks",
    "KeptBlocks",
    "KeptResult",
    "OpenRound",
    "RunPin",
    "SeenLinks",
    "kept",
    "run_key",
]

R = TypeVar("R")
Means = npt.NDArray[np.float64]

DRAWS = "draws"
"""Store key of a device's own random bytes for whatever it measures (``lasting_draws``)."""


@message(0x0181, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBlocks:
    """Store record: the global state as last received, and in which run.

    Args:
        round_id: the round that began with it.
        learning_rate_factor: of that round.
        server: what its coordinator's rule remembers beside it, as this device computed it; None: not known here.
    """

    run_id: str
    digests: tuple[BlockDigest, ...]
    blocks: tuple[BlockPayload, ...]
    round_id: int
    learning_rate_factor: float
    server: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResult:
    """The result of training, unchanged: every attempt at the round makes its inputs from it (``LocalResult``).

    Args:
        deltas: by their names in the adapter, float32 little-endian; neither weighted nor clipped.
        trained_loss, trained, evaluated_loss, correct, evaluated: see ``LocalResult``.
        lanes: of the task's measure, float64 little-endian; empty: none.
        probes: of the round that measures the learning rate, likewise.
    """

    deltas: tuple[BlockPayload, ...]
    trained_loss: float
    trained: int
    evaluated_loss: float
    correct: int
    evaluated: int
    lanes: bytes
    probes: bytes

    @classmethod
    def of(cls, result: LocalResult) -> "KeptResult":
        """For the store."""
        return cls(
            deltas=tuple(
                BlockPayload(block_id=block_id, values=delta.astype("<f4", copy=False).tobytes())
                for block_id, delta in result.deltas.items()
            ),
            trained_loss=float(result.trained_loss),
            trained=int(result.trained),
            evaluated_loss=float(result.evaluated_loss),
            correct=int(result.correct),
            evaluated=int(result.evaluated),
            lanes=_packed(result.lanes),
            probes=_packed(result.probes),
        )

    @property
    def result(self) -> LocalResult:
        """To make inputs of."""
        return LocalResult(
            deltas={part.block_id: np.frombuffer(part.values, "<f4").astype(np.float32) for part in self.deltas},
            trained_loss=self.trained_loss,
            trained=self.trained,
            evaluated_loss=self.evaluated_loss,
            correct=self.correct,
            evaluated=self.evaluated,
            lanes=_unpacked(self.lanes),
            probes=_unpacked(self.probes),
        )


@message(0x0182, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """Store record: the round that this device has trained for and not yet finished.

    Args:
        run_id, round_id: which.
        offer_sha256: of the offer it answered; a repeat of that offer gets the same answer.
        work_sha256: of what was trained; another attempt at the same work makes its inputs of the same result.
        ready: that answer, encoded.
        inputs: what goes into the sum, float32 little-endian, weighted or clipped already.
        result: what they were made of; None until it is there.
        attempt: of the round.
        noise: of a round under client-level privacy; what opening its sum costs follows from it.
        begun_sha256, tries: the work that was begun, and how often: a process that died over it is more careful.
    """

    run_id: str
    round_id: int
    offer_sha256: str
    work_sha256: str
    ready: bytes
    inputs: tuple[BlockPayload, ...]
    result: KeptResult | None = None
    attempt: int = 1
    noise: Mechanism | None = None
    begun_sha256: str = ""
    tries: int = 0


@message(0x0185, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class RunPin:
    """Store record: what a run is on this device, from the first round that it saw of it.

    Args:
        run_id: which.
        plan: digest of its learning plan; another one in a later round is refused.
        first: digest of the state of round 1.
        round_id: the last round that this device took part in; 0: none yet.
        clip: the clip norm of that round; 0: it had no noise.
        state: digest of the state that it began with.
        work: digest of what it asked for; in any attempt at that round other work is refused.
        scale: how many times the table's learning rates the run has measured; 0: none was heard of yet.
        forms: of the records that this device keeps of it (``fedpeft.round.device.pins``).
    """

    run_id: str
    plan: bytes
    first: bytes
    round_id: int = 0
    clip: float = 0.0
    state: bytes = b""
    work: bytes = b""
    scale: float = 0.0
    forms: bytes = b""


@message(0x0186, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLinks:
    """Store record: a run's history as this device has accepted it.

    Args:
        links: the last ones.
        offer: the newest accepted one: the coordinator's signature over the history's digest.
        heads: h_0, h_1, ... as far as they were followed, the last ones; 32 bytes each.
    """

    links: tuple[Link, ...]
    offer: bytes
    heads: bytes = b""


@message(0x0187, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class ForkSeen:
    """Store record, for the site: two histories of one run, and the coordinator's signature over both.

    Args:
        run_id, round_id: of the request that was refused.
        own: what this device had accepted.
        theirs: the links that came with the request.
        offer: its signed terms.
    """

    run_id: str
    round_id: int
    own: SeenLinks
    theirs: tuple[Link, ...]
    offer: bytes


@message(0x0189, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlocks:
    """Store record: ``before`` is what the round after ``history`` began with, ``after`` what it left."""

    history: bytes
    before: tuple[BlockPayload, ...]
    after: tuple[BlockPayload, ...]


def _packed(means: Means | None) -> bytes:
    return b"" if means is None else means.astype("<f8", copy=False).tobytes()


def _unpacked(means: bytes) -> Means | None:
    return np.frombuffer(means, "<f8").astype(np.float64) if means else None


def kept(store: DeviceStore, key: str, kind: type[R]) -> R | None:
    """A record of a store; None if there is none, or it is another version's: no run of that one goes on here.

    ``fedpeft.round.device.pins`` refuses those runs, by the forms that are kept with each.
    """
    payload = store.read(key)
    try:
        return None if payload is None else decode(payload, kind)
    except OtherVersion:
        return None


def run_key(run_id: str, kind: str = "run") -> str:
    """Where a store keeps a record of this run."""
    return f"{kind}-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"
