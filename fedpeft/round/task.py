"""What goes into one attempt at a round, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, BlockSpec
from fedpeft.ids import BlockId, NodeId, ParticipantId, RoundId
from fedpeft.privacy import ExampleStatement, NoiseTerms
from fedpeft.round.messages import Profile
from fedpeft.round.plan import LearningPlan

__all__ = ["NOWHERE", "Member", "RoundOutcome", "RoundTask", "Traffic", "each_once"]

NOWHERE = NodeId(0)
"""The node of a device that cannot be reached now."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device that can be asked: where it is, who it is, and which blocks it is thought to hold.

    ``held`` is the coordinator's memory, updated when a device has answered a fit request.
    """

    node: NodeId
    profile: Profile
    held: dict[BlockId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """What one attempt at one round is to do.

    Args:
        round_id: from 1.
        attempt: from 1; counts within the round, over all starts of the coordinator.
        noise: client-level differential privacy: what every device clips to and adds; then nothing is measured.
        plan: the run's learning plan.
        train: False for an evaluation of the state alone.
        first_step: local steps asked for in earlier rounds.
        learning_rate_factor: the schedule's, in [0, 1].
        eval_examples: held-out examples a device; 0 for all.
        blocks: the blocks that this round trains, of the trainable ones; None: all of them.
        bucket_of: device name -> its bucket, from 1, when sums are bucketed; empty: one sum a block.
        controls: SCAFFOLD's control of each block; empty without.
        wanted: how many devices make the round: the first exchange ends when so many are ready; None: all.
    """

    round_id: RoundId
    attempt: int
    plan: LearningPlan
    train: bool
    first_step: int
    learning_rate_factor: float
    eval_examples: int
    noise: NoiseTerms | None = None
    blocks: frozenset[BlockId] | None = None
    bucket_of: Mapping[str, int] = field(default_factory=dict)
    controls: Mapping[BlockId, Vector] = field(default_factory=dict)
    wanted: int | None = None

    def trained(self, adapter: AdapterSpec) -> tuple[BlockSpec, ...]:
        """The blocks that this round trains, in the specification's order; none in an evaluation."""
        if not self.train:
            return ()
        return tuple(
            block
            for block in adapter.blocks
            if block.trainable and (self.blocks is None or block.block_id in self.blocks)
        )


@dataclass(slots=True, kw_only=True)
class Traffic:
    """One device's part in a round, as the coordinator sees it."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    ready: bool = False
    failure: str = ""
    spared: bool = False
    """Asked, and still at work when enough others were ready."""
    statement: ExampleStatement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """How one attempt ended, and what every device did in it (by device name).

    ``is_final``: its survivor set was put to the devices; whatever came of it, no other attempt at this round follows.
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
