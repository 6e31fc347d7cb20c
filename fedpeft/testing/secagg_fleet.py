"""Devices of the secure sum for tests: their keys, their ledgers, and the terms of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    DevicePolicy,
    DeviceSession,
    DeviceState,
    Enrolled,
    IdentityKey,
    MemoryLedger,
    Mode,
    Participant,
    RoundSpec,
    SummedBlock,
    dump_state,
    load_state,
)
from fedpeft.secagg.device_state import mark_of

__all__ = ["DumpingLedger", "Fleet", "make_fleet", "make_spec", "one_hot"]


class DumpingLedger(MemoryLedger):
    """A ledger that keeps bytes only: what is loaded is what a restarted process would read."""

    def __init__(self) -> None:
        super().__init__()
        self.dumped: dict[str, bytes] = {}

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        dumped = self.dumped.get(run_id)
        return None if dumped is None else load_state(dumped)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        self.dumped[run_id] = dump_state(state)
        self._marks[run_id] = mark_of(state, self._marks.get(run_id))

    def copy(self) -> "DumpingLedger":
        """Another with the same content."""
        other = DumpingLedger()
        other.dumped, other._marks = dict(self.dumped), dict(self._marks)
        return other


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Enrolled devices 1..n and their coordinator.

    Args:
        coordinator: its signing key.
        identities: the devices' keys, in the order of their ids.
        sessions: one a device.
        ledgers: the sessions' memories.
        policy: every site's.
        organisations: whose each device is, in the order of their ids.
        entropy: where everybody's keys come from.
    """

    coordinator: IdentityKey
    identities: tuple[IdentityKey, ...]
    sessions: dict[ParticipantId, DeviceSession]
    ledgers: Mapping[ParticipantId, DumpingLedger]
    policy: DevicePolicy
    organisations: tuple[str, ...]
    entropy: Entropy

    def restart(self, member: ParticipantId) -> None:
        """A new process of this device: it has its key, its site's policy, and its ledger."""
        identity = self.identities[member - 1]
        self.sessions[member] = DeviceSession(
            ledger=self.ledgers[member], identity=identity, enrolled=self.enrolled(member), policy=self.policy
        )

    def again(self) -> "Fleet":
        """The same devices in processes of their own, each with what its ledger holds now."""
        ledgers = {member: ledger.copy() for member, ledger in self.ledgers.items()}
        other = replace(self, sessions={}, ledgers=ledgers)
        for member in ledgers:
            other.restart(member)
        return other

    def enrolled(self, member: ParticipantId) -> Enrolled:
        """What a device's enrolment says of it."""
        return Enrolled(device=f"device-{member}", organisation=self.organisations[member - 1])


def make_fleet(devices: int, *, seed: int = 0, organisations: Sequence[str] | None = None, **policy: object) -> Fleet:
    """Enrols devices, each its own organisation unless told; ``policy`` changes every site's ``DevicePolicy``."""
    entropy = seeded_entropy(seed, "fleet")
    coordinator = IdentityKey.generate(entropy)
    identities = tuple(IdentityKey.generate(entropy) for _ in range(devices))
    rules = replace(DevicePolicy(coordinator_key=coordinator.public, allow_fast=True), **policy)  # type: ignore[arg-type]
    ledgers = {ParticipantId(i): DumpingLedger() for i in range(1, devices + 1)}
    fleet = Fleet(
        coordinator=coordinator,
        identities=identities,
        sessions={},
        ledgers=ledgers,
        policy=rules,
        organisations=tuple(organisations or [f"site-{i}" for i in ledgers]),
        entropy=entropy,
    )
    for member in ledgers:
        fleet.restart(member)
    return fleet


def make_spec(fleet: Fleet, blocks: Sequence[SummedBlock] | None = None, **changes: object) -> RoundSpec:
    """Terms for the whole fleet; ``changes`` replace fields."""
    count = len(fleet.identities)
    default = SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=count, max_abs=1.0, exact=True),))
    spec = RoundSpec(
        run_id="run",
        round_id=1,
        attempt=1,
        mode=Mode.FULL,
        participants=tuple(
            Participant(
                participant_id=ParticipantId(i),
                device=f"device-{i}",
                organisation=organisation,
                identity=key.public,
            )
            for i, (key, organisation) in enumerate(zip(fleet.identities, fleet.organisations, strict=True), 1)
        ),
        blocks=tuple(blocks) if blocks is not None else (default,),
        min_cohort=3,
        corrupt_fraction=0.1,
        dropout_fraction=0.1,
        stage_deadline_s=60.0,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def one_hot(spec: RoundSpec, member: ParticipantId) -> dict[BlockId, npt.NDArray[np.float32]]:
    """A vector a block that is 1 at the member's own place: in a sum, a 2 is a replay and a missing 1 a loss."""
    vectors = {block.block_id: np.zeros(block.length, np.float32) for block in spec.blocks}
    for vector in vectors.values():
        vector[member - 1] = 1.0
    return vectors
