"""A whole secure sum in memory, with an unreliable network in between (docs/protocol.md).

Every message is encoded and decoded as it would be on a real wire. What goes wrong is a list of ``Op``; the same list
gives the same run. Failures covered: lost, late, repeated, reordered and corrupted messages in both directions, devices
that restart with nothing but their ledger, stages closed early. Not covered: two coordinators, time (the engine's
business). Known nondeterminism: none; keys come from seeded entropy, which only tests may do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    REPLIES,
    REQUESTS,
    Aborted,
    CoordinatorState,
    DevicePolicy,
    DeviceSession,
    DeviceState,
    Enrolled,
    IdentityKey,
    Mark,
    Mode,
    Open,
    Participant,
    Reason,
    Refusal,
    Reply,
    Request,
    RoundOffer,
    RoundSpec,
    Summed,
    SummedBlock,
    close_stage,
    dump_state,
    load_state,
    open_round,
    receive,
    reject,
)
from fedpeft.secagg.device_state import mark_of
from fedpeft.wire import WireError, decode, encode

__all__ = ["STAGES", "DumpingLedger", "Fleet", "Op", "Round", "make_fleet", "make_spec", "one_hot", "run_round"]

STAGES = ("fit", "share", "mask", "consist", "reveal")

Vectors = Mapping[BlockId, npt.NDArray[np.float32]]


class DumpingLedger:
    """A ledger that keeps bytes only: what is loaded is what a restarted process would read."""

    def __init__(self) -> None:
        self.dumped: dict[str, bytes] = {}
        self._marks: dict[str, Mark | None] = {}

    def load(self, run_id: str) -> DeviceState | None:
        """See ``Ledger``."""
        dumped = self.dumped.get(run_id)
        return None if dumped is None else load_state(dumped)

    def save(self, run_id: str, state: DeviceState) -> None:
        """See ``Ledger``."""
        self.dumped[run_id] = dump_state(state)
        self._marks[run_id] = mark_of(state, self._marks.get(run_id))

    def mark(self, run_id: str) -> Mark | None:
        """See ``Ledger``."""
        return self._marks.get(run_id)

    def forget(self, run_id: str) -> None:
        """See ``Ledger``."""
        self.dumped.pop(run_id, None)

    @property
    def barrier(self) -> bool:
        """See ``Ledger``."""
        return False

    def sit_out(self, run_id: str, mark: Mark) -> None:
        """See ``Ledger``."""
        self._marks[run_id] = mark


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One thing that goes wrong, with one message of one stage and device.

    Args:
        kind: ``drop`` it; ``delay`` it past the end of the stage; ``duplicate`` it; ``corrupt`` one byte of it;
            ``restart`` the device after it has handled the request and before its reply leaves, then ask again;
            ``reorder`` the stage's messages; ``advance``: close the stage when this device's turn comes.
        stage: the stage's name.
        member: the device.
        request: whether the request (True) or the reply is meant.
        byte: for ``corrupt``: which byte, as a fraction of the length; for ``reorder``: the seed.
    """

    kind: Literal["drop", "delay", "duplicate", "corrupt", "restart", "reorder", "advance"]
    stage: str
    member: ParticipantId
    request: bool = False
    byte: float = 0.0


@dataclass(kw_only=True)
class Round:
    """One run of the protocol under a list of ops.

    Args:
        fleet: who takes part.
        spec: the terms.
        owns: each device's blocks; missing: all.
        inputs: each device's vectors; missing: one-hot.
        ops: what goes wrong.
    """

    fleet: Fleet
    spec: RoundSpec
    owns: Mapping[ParticipantId, frozenset[BlockId]] = field(default_factory=dict)
    inputs: Mapping[ParticipantId, Vectors] = field(default_factory=dict)
    ops: Sequence[Op] = ()
    replies: dict[tuple[ParticipantId, bytes], bytes] = field(default_factory=dict)
    delayed: list[tuple[ParticipantId, bytes]] = field(default_factory=list)

    def run(self) -> Summed | Aborted:
        """Runs it to its end."""
        state: CoordinatorState = self.open()
        while isinstance(state, Open):
            state = self.finish_stage(state)
        return state

    def open(self) -> Open:
        """The round as the coordinator starts it."""
        return open_round(self.spec, identity=self.fleet.coordinator, entropy=self.fleet.entropy)

    def finish_stage(self, state: Open) -> CoordinatorState:
        """Every device's exchange of this stage, then its end."""
        return close_stage(self.exchange_all(state))

    def reach(self, stage: str) -> Open:
        """The round at the beginning of a stage."""
        state: CoordinatorState = self.open()
        while isinstance(state, Open) and state.stage != stage:
            state = self.finish_stage(state)
        if not isinstance(state, Open):
            raise TypeError(f"Expected to reach {stage}, found {state}.")
        return state

    def ask(self, member: ParticipantId, request: Request) -> Reply:
        """What a device answers to a request."""
        return cast("Reply", decode(self.device(member, encode(request)), REPLIES))

    def exchange_all(self, state: Open) -> CoordinatorState:
        """Every device's exchange of this stage, as the ops let it happen."""
        late, self.delayed = self.delayed, []
        now: CoordinatorState = state
        for member, reply in late:
            now = self._deliver(now, member, reply)
        for member in self._order(state):
            if self._has("advance", state.stage, member, None):
                break
            for reply in self._exchange(state.stage, member, encode(state.requests[member])):
                now = self._deliver(now, member, reply)
        return now

    def _order(self, state: Open) -> list[ParticipantId]:
        members = sorted(state.requests)
        for op in self.ops:
            if op.kind == "reorder" and op.stage == state.stage:
                members = [members[i] for i in np.random.default_rng(int(op.byte * 2**32)).permutation(len(members))]
        return members

    def _exchange(self, stage: str, member: ParticipantId, request: bytes) -> list[bytes]:
        """The replies that arrive in this stage when one request is sent."""
        if self._has("drop", stage, member, True) or self._has("delay", stage, member, True):
            return []
        request = self._corrupted(request, stage, member, True)
        replies = [self.device(member, request)]
        if self._has("duplicate", stage, member, True):
            replies.append(self.device(member, request))
        if self._has("restart", stage, member, None):
            self.fleet.restart(member)
            replies = [self.device(member, request)]
        replies = [self._corrupted(reply, stage, member, False) for reply in replies]
        if self._has("duplicate", stage, member, False):
            replies = replies * 2
        if self._has("drop", stage, member, False):
            return []
        if self._has("delay", stage, member, False):
            self.delayed.extend((member, reply) for reply in replies)
            return []
        return replies

    def device(self, member: ParticipantId, request: bytes) -> bytes:
        """What a device answers; the same request must always get the same bytes."""
        try:
            decoded = cast("Request", decode(request, REQUESTS))
        except WireError as error:
            return encode(Refusal(reason=Reason.MALFORMED, detail=str(error)))
        session = self.fleet.sessions[member]
        reply: Reply
        if isinstance(decoded, RoundOffer):
            reply = session.begin(decoded, owns=self._owned(member), entropy=self.fleet.entropy)
        else:
            reply = session.answer(
                self.spec.run_id, decoded, inputs=lambda: self._vectors(member), rounding=self.fleet.entropy
            )
        encoded = encode(reply)
        if not isinstance(reply, Refusal) and self.replies.setdefault((member, request), encoded) != encoded:
            raise AssertionError(f"Device {member} answered the same request twice differently.")
        return encoded

    def _deliver(self, state: CoordinatorState, sender: ParticipantId, reply: bytes) -> CoordinatorState:
        try:
            decoded = cast("Reply", decode(reply, REPLIES))
        except WireError as error:
            return reject(state, sender, Reason.MALFORMED, str(error))
        return receive(state, sender, decoded)

    def _owned(self, member: ParticipantId) -> frozenset[BlockId]:
        return self.owns.get(member, frozenset(block.block_id for block in self.spec.blocks))

    def _vectors(self, member: ParticipantId) -> Vectors:
        vectors = self.inputs[member] if member in self.inputs else one_hot(self.spec, member)
        return {block: vectors[block] for block in self._owned(member)}

    def _has(self, kind: str, stage: str, member: ParticipantId, request: bool | None) -> bool:
        wanted = (kind, stage, member)
        return any((op.kind, op.stage, op.member) == wanted and request in (None, op.request) for op in self.ops)

    def _corrupted(self, message: bytes, stage: str, member: ParticipantId, request: bool) -> bytes:
        changed = bytearray(message)
        for op in self.ops:
            if (op.kind, op.stage, op.member, op.request) == ("corrupt", stage, member, request):
                changed[min(int(op.byte * len(changed)), len(changed) - 1)] ^= 1 + int(op.byte * 997) % 255
        return bytes(changed)


def run_round(
    fleet: Fleet,
    spec: RoundSpec,
    *,
    ops: Sequence[Op] = (),
    owns: Mapping[ParticipantId, frozenset[BlockId]] | None = None,
    inputs: Mapping[ParticipantId, Vectors] | None = None,
) -> Summed | Aborted:
    """One round; see ``Round``."""
    return Round(fleet=fleet, spec=spec, ops=ops, owns=owns or {}, inputs=inputs or {}).run()
