"""A whole secure sum in memory, with an unreliable network in between (docs/protocol.md).

Every message is encoded and decoded as it would be on a real wire. What goes wrong is a list of ``Op``; the same list
gives the same run. Failures covered: lost, late, repeated, reordered and corrupted messages in both directions, devices
that restart with nothing but their ledger, stages closed early. Not covered: two coordinators, time (the engine's
business). Known nondeterminism: none; keys come from seeded entropy, which only tests may do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg import (
    REPLIES,
    REQUESTS,
    Aborted,
    CoordinatorState,
    Open,
    Reason,
    Refusal,
    Reply,
    Request,
    RoundOffer,
    RoundSpec,
    Summed,
    close_stage,
    open_round,
    receive,
    reject,
)
from fedpeft.testing.secagg_fleet import Fleet, one_hot
from fedpeft.wire import WireError, decode, encode

__all__ = ["STAGES", "Op", "Round", "run_round"]

STAGES = ("fit", "share", "mask", "consist", "reveal")

Vectors = Mapping[BlockId, npt.NDArray[np.float32]]


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
