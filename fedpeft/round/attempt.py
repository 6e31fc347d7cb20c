"""The coordinator's exchanges of one attempt: members and their nodes, requests, replies, and traffic."""

import hashlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.ids import BlockId, NodeId, ParticipantId
from fedpeft.round.events import Event, EventKind, Observer
from fedpeft.round.messages import BlockPayload, Failure, FailureReason, FitRequest, Ready
from fedpeft.round.pending import PendingRound
from fedpeft.round.summing import SumRound
from fedpeft.round.task import NOWHERE, Member, RoundOutcome, RoundTask, Traffic
from fedpeft.round.transport import SMALL_ANSWER_BYTES, Reply, Requests, Stage, Transport
from fedpeft.wire import WireError, decode, encode

__all__ = ["Attempt"]

LACKS = (FailureReason.MISSING_STATE, FailureReason.MISSING_HISTORY, FailureReason.MISSING_ROSTER)
"""What a device says that needs to be given something again."""


REQUESTS_KEPT = 8
"""Of a round's different fit requests, as many at a time: most devices need the same, as large as the state."""


@dataclass(frozen=True, slots=True)
class _Needs:
    """What two devices have in common that are sent the same fit request.

    Args:
        offer: with the roster, or without.
        after: the last round whose link they have.
        blocks: of the state, those that they lack and are given.
        sums: whether they are given the last round's sums.
    """

    offer: secagg.Request
    after: int
    blocks: tuple[BlockId, ...]
    sums: bool


class Attempt:
    """The members of one attempt.

    Args:
        task: what is asked.
        members: in the order of the terms.
        transport: how.
        observe: told of every message.
        accounts: of each member, from before a restart.
        answer_bytes: that an answer may have.
    """

    def __init__(
        self,
        task: RoundTask,
        members: Sequence[Member],
        transport: Transport,
        observe: Observer,
        *,
        accounts: Sequence[Traffic] = (),
        answer_bytes: int = SMALL_ANSWER_BYTES,
    ) -> None:
        self._task, self._transport, self._observe = task, transport, observe
        self._answer_bytes = answer_bytes
        self._members = {ParticipantId(place): member for place, member in enumerate(members, 1)}
        self._places = {member.node: place for place, member in self._members.items()}
        self.names = {place: member.profile.device for place, member in self._members.items()}
        self._asking: set[ParticipantId] = set()
        self._requests: dict[_Needs, bytes] = {}
        parts = accounts or tuple(Traffic() for _ in members)
        self.traffic = dict(zip(self.names.values(), parts, strict=True))

    def fit(
        self, offers: Mapping[ParticipantId, secagg.Request], state: AdapterState, *, deadline_s: float
    ) -> Generator[tuple[ParticipantId, secagg.Reply | str]]:
        """Stage 1. A device that lacks the state, history or roster it was thought to have is asked once more."""
        asked = sorted(offers, key=self._turn) if self._task.target_cohort else list(offers)
        given: dict[ParticipantId, set[FailureReason]] = {place: set() for place in asked}

        def request(place: ParticipantId) -> bytes:
            return self._fit_request(place, offers[place], state)

        try:
            while asked:
                again: list[ParticipantId] = []
                for place, reply in self._exchange(Stage.FIT, asked, request, deadline_s):
                    answer = self._decoded(reply, (Ready, Failure))
                    if isinstance(answer, Failure) and answer.reason in LACKS and answer.reason not in given[place]:
                        given[place].add(answer.reason)  # each once at most: who lacks it then is out of this attempt
                        self._forget(place, answer)
                        self._tell(EventKind.LACKED, Stage.FIT, place, detail=answer.reason.value)
                        again.append(place)
                    else:
                        yield place, self._ready(place, answer, offers[place], state)
                asked = again
        finally:
            self._requests.clear()

    def later(
        self, stage: Stage, requests: Mapping[ParticipantId, secagg.Request], *, deadline_s: float
    ) -> Generator[tuple[ParticipantId, secagg.Reply | str]]:
        """Stages 2 to 5: the secure aggregation's own messages."""
        for place, reply in self._exchange(stage, requests, lambda place: encode(requests[place]), deadline_s):
            answer = self._decoded(reply, (*secagg.REPLIES, Failure))
            if isinstance(answer, secagg.Refusal):
                self._failed(place, stage, answer.reason.value)
            if isinstance(answer, Failure | str):
                yield place, self._failed(place, stage, answer)
            else:
                self.traffic[self.names[place]].failure = ""  # of an earlier time that it was asked
                yield place, cast("secagg.Reply", answer)

    def pending(self, summing: SumRound) -> PendingRound:
        """This round from here on, for a ``PendingStore``."""
        return PendingRound(
            round_id=self._task.round_id,
            attempt=self._task.attempt,
            members=tuple(member.profile for member in self._members.values()),
            accounts=tuple(self.traffic.values()),
            summing=summing.pending(),
        )

    def outcome(self, end: secagg.Summed | secagg.Aborted, *, is_final: bool) -> RoundOutcome:
        """How it ended."""
        return RoundOutcome(result=end, traffic=self.traffic, participants=self.names, is_final=is_final)

    def release_the_others(self, target_cohort: int) -> None:
        """Stage 1 ends early: who has neither answered nor failed was not needed."""
        for account in self.traffic.values():
            account.not_needed = not account.ready and not account.failure
        not_needed = [name for name, account in self.traffic.items() if account.not_needed]
        for place, name in self.names.items():
            if self.traffic[name].not_needed:
                self._members[place].known.unheard = True
        detail = f"{target_cohort} of {len(self.names)} are ready; not needed: {', '.join(not_needed) or 'nobody'}"
        self._observe(Event(kind=EventKind.STAGE_CLOSED, round_id=self._task.round_id, stage=Stage.FIT, detail=detail))

    def _turn(self, place: ParticipantId) -> bytes:
        """Whom to ask first when only the first to be ready count: another order every round."""
        return hashlib.sha256(f"{self._task.plan.run_id} {self._task.round_id} {self.names[place]}".encode()).digest()

    def too_few(self, *, survivors: int, needed: int) -> secagg.Aborted:
        """The end of a round of which nothing was opened."""
        return secagg.Aborted(
            reason=secagg.Reason.TOO_FEW_DEVICES,
            detail=f"{survivors} devices finished, {needed} needed.",
            blamed=frozenset(place for place, name in self.names.items() if self.traffic[name].failure),
            restartable=True,
            rejected={},
        )

    def _forget(self, place: ParticipantId, lacks: Failure) -> None:
        """What this device does not have after all."""
        member = self._members[place]
        if lacks.reason is FailureReason.MISSING_STATE:
            member.held.clear()
            self._asking.discard(place)
        elif lacks.reason is FailureReason.MISSING_ROSTER:
            member.known.roster = b""
        else:
            member.known.after = min(lacks.after, self._task.round_id - 1)
            self._asking.add(place)  # it may lack the sums, not the links

    def _fit_request(self, place: ParticipantId, offer: secagg.Request, state: AdapterState) -> bytes:
        """The same bytes, in one place, for all devices that need the same: a state is as large as an update."""
        held, known, published = self._members[place].held, self._members[place].known, self._task.published
        follows = published is not None and {entry.block_id: entry.sha256 for entry in published.before} == held
        lacking = tuple(block_id for block_id in state if held.get(block_id) != state.digests[block_id])
        if isinstance(offer, secagg.RoundOffer):
            offer = replace(offer, roster=b"" if known.roster == offer.roster else offer.roster)
        needs = _Needs(
            offer, known.after, () if follows else lacking, follows or known.unheard or place in self._asking
        )
        if needs not in self._requests:
            if len(self._requests) == REQUESTS_KEPT:
                self._requests.clear()
            self._requests[needs] = self._encoded(needs, state)
        return self._requests[needs]

    def _encoded(self, needs: _Needs, state: AdapterState) -> bytes:
        published = self._task.published
        request = FitRequest(
            offer=encode(needs.offer),
            learning=self._task.plan.to_json(),
            work=encode(self._task.work(state)),
            history=encode(self._task.past.since(needs.after)),
            payloads=tuple(
                BlockPayload(block_id=block_id, values=state[block_id].astype("<f4", copy=False).tobytes())
                for block_id in needs.blocks
            ),
            controls=self._task.control_payloads(),
            sums=published.sums if published is not None and needs.sums else (),
        )
        return encode(request)

    def _ready(
        self, place: ParticipantId, answer: object, offer: secagg.Request, state: AdapterState
    ) -> secagg.Reply | str:
        if not isinstance(answer, Ready):
            return self._failed(place, Stage.FIT, answer)
        self._members[place].held.update(state.digests)
        self._members[place].known.after = self._task.round_id - 1
        self._members[place].known.unheard = False
        if isinstance(offer, secagg.RoundOffer):
            self._members[place].known.roster = offer.roster
        self.traffic[self.names[place]].ready = True
        self.traffic[self.names[place]].statement = answer.privacy
        try:
            return decode(answer.advertise, secagg.Advertise)
        except WireError as error:
            return self._failed(place, Stage.FIT, str(error))

    def _exchange(
        self,
        stage: Stage,
        asked: Collection[ParticipantId],
        request: Callable[[ParticipantId], bytes],
        deadline_s: float,
    ) -> Iterator[tuple[ParticipantId, Reply]]:
        if not asked:
            return

        def send(node: NodeId) -> bytes:
            place = self._places[node]
            payload = request(place)
            self.traffic[self.names[place]].bytes_down += len(payload)
            self._tell(EventKind.ASKED, stage, place, detail=f"{deadline_s:.0f} s to answer")
            return payload

        nodes = [node for place in asked if (node := self._members[place].node) != NOWHERE]
        requests = Requests(nodes, send, answer_bytes=self._answer_bytes)
        heard: set[ParticipantId] = set()
        for reply in self._transport.exchange(stage, requests, deadline_s=deadline_s):
            place = self._places[reply.node]
            heard.add(place)
            account = self.traffic[self.names[place]]
            account.bytes_up += reply.bytes_up
            account.seconds += reply.seconds
            self._tell(EventKind.ANSWERED, stage, place, reply=reply)
            yield place, reply
        for place in set(asked) - heard:
            self._failed(place, stage, f"no answer within {deadline_s:.0f} s")
        detail = f"{len(heard)} of {len(asked)} answered"
        self._observe(Event(kind=EventKind.STAGE_CLOSED, round_id=self._task.round_id, stage=stage, detail=detail))

    def _decoded(self, reply: Reply, expected: tuple[type, ...]) -> object:
        if reply.payload is None:
            return reply.error
        try:
            return decode(reply.payload, expected)
        except WireError as error:
            return str(error)

    def _failed(self, place: ParticipantId, stage: Stage, answer: object) -> str:
        text = answer.reason.value if isinstance(answer, Failure) else str(answer)
        self.traffic[self.names[place]].failure = text
        self._tell(EventKind.FAILED, stage, place, detail=text)
        return text

    def _tell(
        self, kind: EventKind, stage: Stage, place: ParticipantId, *, detail: str = "", reply: Reply | None = None
    ) -> None:
        self._observe(
            Event(
                kind=kind,
                round_id=self._task.round_id,
                stage=stage,
                device=self.names[place],
                detail=detail,
                seconds=reply.seconds if reply else 0.0,
                bytes_up=reply.bytes_up if reply else 0,
                bytes_down=reply.bytes_down if reply else 0,
            )
        )
