"""The device's side of a round: from a fit request to the last reply (docs/design.md, section 2).

The device validates, the coordinator proposes. Whatever cannot be done is answered by a ``Failure`` of constant bytes;
after the examples were touched not even by that (``fedpeft.round.failures``). One round is open at a time: a newer fit
request replaces an older one. What must outlive a kill between two messages is in the store before the reply leaves.
"""

import hashlib
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.entropy import Entropy
from fedpeft.errors import BudgetExhausted, IntegrityFailed
from fedpeft.ids import SIZELESS, BlockId, RoundId, SizeClass
from fedpeft.privacy import PrivacyLedger
from fedpeft.round.device.accepting import accepted_work, clipped_coordinates, expect_affordable, owned_sums
from fedpeft.round.device.agreed import keep_agreed
from fedpeft.round.device.contribution import contribution, trained
from fedpeft.round.device.draws import expanded, lasting_draws
from fedpeft.round.device.late import keep_trained, last_trained, note_masked
from fedpeft.round.device.records import KeptResult, OpenRound, kept
from fedpeft.round.example_privacy import ExamplePrivacy, OpenLedger
from fedpeft.round.failures import REFUSED, UNABLE, Tell, Trouble, cause_of, log_trouble, refusal_of, trace_of
from fedpeft.round.history import MissingLinks
from fedpeft.round.local import DeviceStore, Effort, Identity, SumSession, Trainer
from fedpeft.round.messages import Failure, FailureReason, FitRequest, Profile, ProfileRequest, Ready
from fedpeft.round.plan import LearningPlan
from fedpeft.round.run_memory import advance, earlier_heads, follow, held_digests, known_links, receive
from fedpeft.round.signed_request import covered_by
from fedpeft.round.size_class import declared_class, discounted
from fedpeft.round.start import expect_start
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work
from fedpeft.secagg.offer import open_terms
from fedpeft.secagg.spec import mechanism
from fedpeft.wire import OtherVersion, WireError, decode, encode

__all__ = ["Device"]

OPEN = "open-round"
_LATER_REQUESTS = (secagg.ShareRequest, secagg.MaskRequest, secagg.ConsistRequest, secagg.RevealRequest)


class Device:
    """One device: answers every stage of the protocol.

    Args:
        identity: who it is.
        trainer: its model and data.
        session: its secure sum.
        store: its memory.
        entropy: for keys; the operating system's.
        budget: what this site may spend on opened sums under client-level privacy, over the device's life; None: no
            limit of its own.
        rounding: (run id, round id) -> randomness for stochastic rounding; seeded in simulation only.
        ledger: opens what this device has spent on example-level privacy, over its life; its budget is the site's.
            None: it takes no part in runs that ask for it.
        noise: keeps where its correlated noise is, in runs that ask for it; must outlive the process as the ledger
            does. None: ``store``.
        tell: keeps what went wrong, with its cause, on this device.
        speaks: whether, in runs without privacy, the device says that it could not train; else it adds zeros there too.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        trainer: Trainer,
        session: SumSession,
        store: DeviceStore,
        entropy: Entropy,
        rounding: Callable[[str, int], Entropy],
        budget: PrivacyLedger | None = None,
        ledger: OpenLedger | None = None,
        noise: DeviceStore | None = None,
        tell: Tell = log_trouble,
        speaks: bool = True,
    ) -> None:
        self._identity, self._trainer, self._session, self._store = identity, trainer, session, store
        self._entropy, self._rounding, self._budget = entropy, rounding, budget
        self._examples = ExamplePrivacy(ledger, noise or store)
        self._tell, self._speaks = tell, speaks
        self._busy = threading.Lock()

    def handle(self, stage: Stage, payload: bytes) -> bytes:
        """The encoded reply to one encoded request; one at a time, a later one waits.

        Raises:
            WireError: the payload is no request of this stage.
        """
        with self._busy:
            try:
                return self._handled(stage, payload)
            except OtherVersion as error:
                self._tell(Trouble(run_id="", round_id=0, cause=str(error)))
                return encode(REFUSED)

    def _handled(self, stage: Stage, payload: bytes) -> bytes:
        match stage:
            case Stage.PROFILE:
                return encode(self._profile(decode(payload, ProfileRequest)))
            case Stage.FIT:
                return encode(self._fit(decode(payload, FitRequest)))
            case Stage.SHARE | Stage.MASK | Stage.CONSIST | Stage.REVEAL:
                return encode(self._answer(cast("secagg.Request", decode(payload, _LATER_REQUESTS))))

    def _profile(self, request: ProfileRequest) -> Profile:
        return Profile(
            device=self._identity.device,
            organisation=self._identity.organisation,
            identity=self._identity.public_key,
            methods=self._trainer.methods,
            held=held_digests(self._store, request.run_id),
            after=known_links(self._store, request.run_id, self._session.mark(request.run_id)),
        )

    def _fit(self, request: FitRequest) -> Ready | Failure:
        """Stage 1: check, train, keep the input of the sum, advertise."""
        opened = kept(self._store, OPEN, OpenRound)
        if opened is not None and opened.offer_sha256 == _sha256(request.offer):
            return decode(opened.ready, Ready)  # a repeat: nothing of it is read, and nothing is computed
        try:
            return self._take_part(request, opened)
        except Exception as error:  # of any kind: its text would say what it is about
            self._told(request.offer, cause_of(error))
            return refusal_of(error)

    def _take_part(self, request: FitRequest, opened: OpenRound | None) -> Ready | Failure:
        """Every check in order (docs/protocol.md, "Work"); examples are touched after the last one."""
        offer = decode(request.offer, secagg.RoundOffer)
        terms = self._session.examine(offer)
        if isinstance(terms, secagg.Refusal):
            if terms.reason is secagg.Reason.MISSING_ROSTER:
                return Failure(reason=FailureReason.MISSING_ROSTER)  # no trouble: it will come with the roster
            return self._objected(request.offer, terms)
        signed = covered_by(terms, request)
        pin = follow(
            self._store,
            signed,
            request,
            coordinator=self._session.coordinator,
            mark=self._session.mark(terms.run_id),
        )
        if isinstance(pin, MissingLinks):
            return Failure(reason=FailureReason.MISSING_HISTORY, after=pin.after)
        spec = self._trainer.spec(signed.plan)
        work = replace(
            accepted_work(signed, pin, spec, request, identity=self._identity.public_key),
            history=terms.history,
            earlier=earlier_heads(self._store, terms.run_id),
            draws=lasting_draws(self._store, self._rounding(terms.run_id, 0)),
        )
        state = receive(self._store, spec, signed, request)
        if isinstance(state, FailureReason):
            return self._lacks(state, terms.run_id)
        if terms.round_id == 1:
            expect_start(signed.plan, state, self._trainer.first_state(signed.plan))
        noise, plan = mechanism(terms), signed.plan
        if noise is not None:
            expect_affordable(noise, self._budget)
        cost = self._trainer.cost(plan) if work.train else None
        result = opened.result if opened is not None and opened.work_sha256 == _same_work(terms) else None
        if cost is not None and result is None:  # what was trained for an earlier attempt is paid for
            stream, cost = self._examples.afford(plan, spec, self._trainer, cost, self._entropy)
            work = replace(work, noise=stream)
        blocks, result, late = self._carried(plan, spec, work, result)
        owns = owned_sums(terms, work, blocks, evaluates=self._trainer.evaluates(plan) and not late)
        declared = self._declared(plan, late) if noise is None else SIZELESS
        advance(self._store, pin, signed)
        advertise = self._session.begin(offer, owns=owns, entropy=self._entropy, weight_class=declared)
        if isinstance(advertise, secagg.Refusal):
            return self._objected(request.offer, advertise)
        able, tell = True, partial(self._told, request.offer)
        if result is None:
            # The keys of the new round are out: from here on the inputs of an older one must not go under them,
            # not even if training fails. Two sums of the same inputs over two cohorts would tell them apart.
            tries = opened.tries if opened is not None and opened.begun_sha256 == _begun(terms) else 0
            self._store.write(OPEN, encode(replace(_opened(terms), begun_sha256=_begun(terms), tries=tries + 1)))
            effort = Effort(min(tries, Effort.BLANK))
            learnt, able = trained(self._trainer, plan, work, state, blocks=blocks, effort=effort, tell=tell)
            result = KeptResult.of(learnt)
            keep_trained(self._store, plan, terms.round_id, result if able and work.train else None)
            if cost is not None:
                self._examples.charge(plan, RoundId(terms.round_id), cost, self._entropy, learnt.noise or work.noise)
        inputs, made = contribution(
            plan,
            work,
            state,
            result.result,
            owns=owns,
            noise=noise,
            declared=declared,
            entropy=expanded(work.draws),
            tell=tell,
        )
        if noise is None and (cut := clipped_coordinates(terms, inputs)):
            tell(cut)
        if not (able and made) and plan.privacy is None and noise is None and self._speaks:
            self._store.write(OPEN, encode(_opened(terms)))
            return UNABLE
        statement = None if cost is None else self._examples.statement(plan, cost)
        ready = Ready(advertise=encode(advertise), privacy=statement)
        answered = replace(
            _opened(terms),
            offer_sha256=_sha256(request.offer),
            work_sha256=_same_work(terms),
            ready=encode(ready),
            inputs=inputs,
            result=result,
        )
        self._store.write(OPEN, encode(answered))
        return ready

    def _carried(
        self, plan: LearningPlan, spec: AdapterSpec, work: Work, result: KeptResult | None
    ) -> tuple[frozenset[BlockId], KeptResult | None, int]:
        """The blocks that this device adds to, what was trained already, and how many rounds late it is.

        What late work evaluated was the state that its training began with, not this round's.
        """
        # What was trained in an earlier attempt stands, though the device may train something else by now.
        blocks = self._trainer.trains(plan) if result is None else frozenset(part.block_id for part in result.deltas)
        last = last_trained(self._store, plan, spec, work, blocks)
        return blocks, result or last.result, last.late

    def _declared(self, plan: LearningPlan, late: int) -> SizeClass:
        return discounted(declared_class(plan.aggregate, self._trainer.size_class(plan)), late)

    def _lacks(self, reason: FailureReason, run_id: str) -> Failure:
        """With the last round whose link a coordinator need not send again."""
        mark = self._session.mark(run_id)
        after = known_links(self._store, run_id, mark) if reason is FailureReason.MISSING_HISTORY else 0
        return Failure(reason=reason, after=after)

    def _objected(self, offer: bytes, refusal: secagg.Refusal) -> Failure:
        """The secure sum's own refusal, whose text stays here."""
        self._told(offer, f"{refusal.reason.value}: {refusal.detail}")
        return Failure(reason=FailureReason.PROTOCOL)

    def _told(self, offer: bytes, cause: str) -> None:
        """To this device's own operator; nobody else hears of it."""
        trace = trace_of(sys.exception())
        try:
            terms = open_terms(decode(offer, secagg.RoundOffer).spec)
            self._tell(Trouble(run_id=terms.run_id, round_id=terms.round_id, cause=cause, trace=trace))
        except WireError:
            self._tell(Trouble(run_id="", round_id=0, cause=cause, trace=trace))

    def _answer(self, request: secagg.Request) -> secagg.Reply | Failure:
        """The later stages are the secure aggregation's; the kept input is all that is added."""
        opened = kept(self._store, OPEN, OpenRound)
        if opened is None:
            return Failure(reason=FailureReason.PROTOCOL)
        try:
            reply = self._session.answer(
                opened.run_id,
                request,
                inputs=lambda: {part.block_id: np.frombuffer(part.values, "<f4") for part in opened.inputs},
                rounding=self._rounding(opened.run_id, opened.round_id),
                before_masking=lambda: self._pay(opened),
            )
        except (BudgetExhausted, IntegrityFailed) as error:
            self._tell(Trouble(run_id=opened.run_id, round_id=opened.round_id, cause=str(error)))
            return REFUSED
        if isinstance(reply, secagg.Agreement) and (agreed := self._session.agreed(opened.run_id)) is not None:
            keep_agreed(self._store, agreed)
        if not isinstance(reply, secagg.Refusal):
            return reply
        cause = f"{reply.reason.value}: {reply.detail}"
        self._tell(Trouble(run_id=opened.run_id, round_id=opened.round_id, cause=cause))
        return replace(reply, detail="")  # its text may quote numbers

    def _pay(self, opened: OpenRound) -> None:
        """Before the input leaves: charge the site's budget for the round's sum, once per round, and note which it is.

        Others can open what was sent without us.

        Raises:
            BudgetExhausted: nothing was charged, and nothing is sent.
            IntegrityFailed: the round was charged for another sum.
        """
        if opened.noise is not None and self._budget is not None:
            self._budget.charge(f"{opened.run_id} round {opened.round_id}", opened.noise.release)
        note_masked(self._store, opened.run_id, opened.round_id)


def _opened(terms: secagg.RoundSpec) -> OpenRound:
    """The record of a round without inputs: nothing was trained yet."""
    return OpenRound(
        run_id=terms.run_id,
        round_id=terms.round_id,
        offer_sha256="",
        work_sha256="",
        ready=b"",
        inputs=(),
        attempt=terms.attempt,
        noise=mechanism(terms),
    )


def _same_work(terms: secagg.RoundSpec) -> str:
    """What was trained, whoever takes part in the attempt: neither buckets nor noise are part of it."""
    return _sha256(f"{terms.run_id} {terms.round_id} ".encode() + terms.work + terms.history)


def _begun(terms: secagg.RoundSpec) -> str:
    """Names the training of one round, whatever the attempt."""
    return _sha256(f"{terms.run_id} {terms.round_id} ".encode() + terms.work)


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
