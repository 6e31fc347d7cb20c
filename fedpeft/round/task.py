"""What goes into one attempt at a round, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.ids import BlockId, NodeId, ParticipantId, RoundId
from fedpeft.privacy import ExampleStatement, NoiseTerms
from fedpeft.round.history import Past
from fedpeft.round.messages import BlockDigest, BlockPayload, Profile, WorkTerms
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.work import state_digest, work_terms
from fedpeft.wire import message

__all__ = ["NOWHERE", "KnownPast", "Member", "PublishedSums", "RoundOutcome", "RoundTask", "Traffic", "each_once"]

NOWHERE = NodeId(0)
"""The node of a device that cannot be reached now."""

Vector = npt.NDArray[np.float32]


@dataclass(slots=True)
class KnownPast:
    """What of a run's past a device is thought to have.

    Args:
        after: the last round whose link it has; 0: none.
        roster: the encoded roster that it answered last; empty: none.
        unheard: whether it was released from its last round before it answered: it may have the state of that.
    """

    after: int = 0
    roster: bytes = b""
    unheard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device that can be asked: where it is, who it is, which blocks it is thought to hold and which past to know.

    ``held`` and ``known`` are the coordinator's memory, updated when a device has answered a fit request.
    """

    node: NodeId
    profile: Profile
    held: dict[BlockId, str] = field(default_factory=dict)
    known: KnownPast = field(default_factory=KnownPast)


@message(0x0193, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSums:
    """The last round's sums, where devices can make its state of them; a file of the coordinator, never a message.

    Args:
        before: digests of the state that the round began with.
        sums: the unmasked words of every opened block, in the order of the terms.
    """

    before: tuple[BlockDigest, ...]
    sums: tuple[BlockPayload, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """What one attempt at one round is to do; whatever follows from the plan is computed from it.

    Args:
        round_id: from 1.
        attempt: from 1; counts within the round, over all starts of the coordinator.
        plan: the run's learning plan.
        past: every round before.
        published: the last round's sums; None: it had none, or its step cannot be followed.
        noise: client-level differential privacy: what every device clips to and adds; then nothing is measured.
        blocks: the blocks that this round trains, of the planned ones; None: all of them.
        controls: SCAFFOLD's control of each block; empty without.
        scale: how many times the table's learning rates, as the run has measured; 0: it has not.
        target_cohort: how many devices make the round: the first exchange ends when so many are ready; None: all.
    """

    round_id: RoundId
    attempt: int
    plan: LearningPlan
    past: Past
    published: PublishedSums | None = None
    noise: NoiseTerms | None = None
    blocks: frozenset[BlockId] | None = None
    controls: Mapping[BlockId, Vector] = field(default_factory=dict)
    scale: float = 0.0
    target_cohort: int | None = None

    @property
    def train(self) -> bool:
        """False for an evaluation of the state alone."""
        return self.round_id <= self.plan.rounds.count

    @property
    def learning_rate_factor(self) -> float:
        """The schedule's, in [0, 1]; 0 in an evaluation."""
        return learning_rate_factor(self.plan.train, self.plan.rounds, self.round_id) if self.train else 0.0

    def work(self, state: AdapterState) -> WorkTerms:
        """What every device is asked to compute from this state."""
        return work_terms(
            self.plan,
            state.spec,
            self.round_id,
            state=state_digest(state.digests),
            blocks=self.blocks,
            controls=self.control_payloads(),
            scale=self.scale,
        )

    def control_payloads(self) -> tuple[BlockPayload, ...]:
        """SCAFFOLD's controls as they travel."""
        return tuple(
            BlockPayload(block_id=block_id, values=control.astype("<f4").tobytes())
            for block_id, control in sorted(self.controls.items())
        )


@dataclass(slots=True, kw_only=True)
class Traffic:
    """One device's part in a round, as the coordinator sees it."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    ready: bool = False
    failure: str = ""
    not_needed: bool = False
    """Asked, and still at work when enough others were ready."""
    statement: ExampleStatement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """How one attempt ended, and what every device did in it (by device name).

    ``is_final``: its survivor set was put to the devices, or under noise their inputs were asked for; whatever came of
    it, no other attempt at this round follows.
    """

    result: secagg.Summed | secagg.Aborted
    traffic: Mapping[str, Traffic]
    participants: Mapping[ParticipantId, str]
    is_final: bool


def each_once(present: Sequence[Member]) -> list[Member]:
    """By name, no name and no identity twice: a device that registered anew counts where it was heard of last."""
    by_identity = {member.profile.identity: member for member in present}
    by_name: dict[str, Member] = {}
    for member in by_identity.values():
        by_name.setdefault(member.profile.device, member)
    return [by_name[name] for name in sorted(by_name)]
