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
from fedpeft.config.check_dp_compatible import expect_proved
from fedpeft.entropy import Entropy
from fedpeft.errors import BudgetExhausted, ConfigInvalid, IntegrityFailed, PolicyRefused, SpecMismatch
from fedpeft.ids import SIZELESS, BlockId, RoundId
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS, Mechanism, PrivacyLedger
from fedpeft.round.bound import Bound, bound_by
from fedpeft.round.contribution import contribution
from fedpeft.round.example_privacy import ExamplePrivacy, OpenLedger
from fedpeft.round.failures import REFUSED, UNABLE, Tell, Trouble, cause_of, log_trouble, refusal_of, trace_of
from fedpeft.round.held import advance, follow, held_digests, known_links, receive
from fedpeft.round.history import Lacking
from fedpeft.round.local import DeviceStore, Effort, Identity, OpenRound, RunPin, SumSession, Trainer, kept
from fedpeft.round.messages import Failure, FailureReason, FitRequest, Profile, ProfileRequest, Ready
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TRAIN_LOSS, in_bucket
from fedpeft.round.noise import expect_noise
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import declared_class
from fedpeft.round.start import expect_start
from fedpeft.round.terms import expect_terms
from fedpeft.round.transport import Stage
from fedpeft.round.work import Work, accept_work, dealt_buckets
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
        tell: Tell = log_trouble,
        speaks: bool = True,
    ) -> None:
        self._identity, self._trainer, self._session, self._store = identity, trainer, session, store
        self._entropy, self._rounding, self._budget = entropy, rounding, budget
        self._examples = ExamplePrivacy(ledger)
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
            return self._objected(request.offer, terms)
        bound = bound_by(terms, request)
        pin = follow(
            self._store,
            bound,
            request,
            coordinator=self._session.coordinator,
            mark=self._session.mark(terms.run_id),
        )
        if isinstance(pin, Lacking):
            return Failure(reason=FailureReason.MISSING_HISTORY, after=pin.after)
        spec = self._trainer.spec(bound.plan)
        work = self._work(bound, pin, spec, request)
        state = receive(self._store, spec, bound, request)
        if isinstance(state, FailureReason):
            return self._lacks(state, terms.run_id)
        if terms.round_id == 1:
            expect_start(bound.plan, state, self._trainer.first_state(bound.plan))
        noise, plan = mechanism(terms), bound.plan
        if noise is not None:
            self._afford(noise)
        cost = self._trainer.cost(plan) if work.train else None
        if cost is not None:
            self._examples.afford(plan, cost)
        done = opened if opened is not None and self._reusable(opened, terms, work, noise) else None
        owns = self._owned(plan, terms, work)
        if done is not None:  # what was trained then, though the device may train something else by now
            owns = frozenset(part.block_id for part in done.inputs) & {block.block_id for block in terms.blocks}
        declared = declared_class(plan.aggregate, self._trainer.size_class(plan)) if noise is None else SIZELESS
        advance(self._store, pin, bound)
        advertise = self._session.begin(offer, owns=owns, entropy=self._entropy, weight_class=declared)
        if isinstance(advertise, secagg.Refusal):
            return self._objected(request.offer, advertise)
        if done is not None:
            inputs = done.inputs  # another attempt at the same round: the training stands
        else:
            # The keys of the new round are out: from here on the inputs of an older one must not go under them,
            # not even if training fails. Two sums of the same inputs over two cohorts would tell them apart.
            tries = opened.tries if opened is not None and opened.begun_sha256 == _begun(terms) else 0
            self._store.write(OPEN, encode(replace(_opened(terms), begun_sha256=_begun(terms), tries=tries + 1)))
            inputs, able = contribution(
                self._trainer,
                plan,
                work,
                state,
                owns=owns,
                noise=noise,
                effort=Effort(min(tries, Effort.BLANK)),
                declared=declared,
                entropy=self._rounding(terms.run_id, terms.round_id),
                tell=partial(self._told, request.offer),
            )
            if not able and plan.privacy is None and noise is None and self._speaks:
                self._store.write(OPEN, encode(_opened(terms)))
                return UNABLE
            if cost is not None:
                self._examples.charge(plan, RoundId(terms.round_id), cost, self._entropy)
        statement = None if cost is None else self._examples.statement(plan, cost)
        ready = Ready(advertise=encode(advertise), privacy=statement)
        answered = replace(
            _opened(terms),
            offer_sha256=_sha256(request.offer),
            work_sha256=_same_work(terms, work),
            ready=encode(ready),
            inputs=inputs,
        )
        self._store.write(OPEN, encode(answered))
        return ready

    def _lacks(self, reason: FailureReason, run_id: str) -> Failure:
        """With the last round whose link a coordinator need not send again."""
        mark = self._session.mark(run_id)
        after = known_links(self._store, run_id, mark) if reason is FailureReason.MISSING_HISTORY else 0
        return Failure(reason=reason, after=after)

    def _work(self, bound: Bound, pin: RunPin, spec: AdapterSpec, request: FitRequest) -> Work:
        """What this device does in this round, all of it as the plan says."""
        terms, plan = bound.terms, bound.plan
        if spec.digest != plan.adapter_spec:
            raise SpecMismatch(f"Expected adapter {plan.adapter_spec[:12]}, built {spec.digest[:12]} on this device.")
        names = [person.device for person in terms.participants]
        mine = [person.device for person in terms.participants if person.identity == self._identity.public_key]
        buckets = dealt_buckets(plan, names, terms.round_id)
        bucket = buckets.get(mine[0], 0) if mine else 0
        work = accept_work(plan, spec, terms.round_id, bound.work, bucket=bucket, controls=request.controls)
        expect_noise(
            plan,
            terms.noise,
            round_id=terms.round_id,
            devices=len(terms.participants),
            parameters=sum(block.length for block in terms.blocks),
            seen=(pin.round_id, pin.clip) if pin.clip else None,
        )
        expect_terms(terms, plan, spec, bound.work)
        # The coordinator may have checked nothing.
        expect_proved(
            plan.adapter,
            plan.train,
            plan.aggregate,
            clients=terms.noise is not None,
            examples=plan.privacy is not None,
            bucket=bucket,
        )
        return work

    @staticmethod
    def _reusable(opened: OpenRound, terms: secagg.RoundSpec, work: Work, noise: Mechanism | None) -> bool:
        """Whether what was trained then is what this attempt asks for."""
        then = (opened.run_id, opened.round_id, opened.work_sha256, opened.noise)
        return then == (terms.run_id, terms.round_id, _same_work(terms, work), noise)

    def _objected(self, offer: bytes, refusal: secagg.Refusal) -> Failure:
        """The secure sum's own refusal, whose text stays here."""
        self._told(offer, f"{refusal.reason.value}: {refusal.detail}")
        return Failure(reason=FailureReason.PROTOCOL)

    def _told(self, offer: bytes, cause: str) -> None:
        """To this device's own operator; nobody else hears of it."""
        trace = trace_of(sys.exception())
        try:
            terms = decode(decode(offer, secagg.RoundOffer).spec, secagg.RoundSpec)
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
                before_signing=lambda: self._pay(opened),
            )
        except (BudgetExhausted, IntegrityFailed) as error:
            self._tell(Trouble(run_id=opened.run_id, round_id=opened.round_id, cause=str(error)))
            return REFUSED
        if not isinstance(reply, secagg.Refusal):
            return reply
        cause = f"{reply.reason.value}: {reply.detail}"
        self._tell(Trouble(run_id=opened.run_id, round_id=opened.round_id, cause=cause))
        return replace(reply, detail="")  # its text may quote numbers

    def _pay(self, opened: OpenRound) -> None:
        """Charge the site's budget for the round's sum, once a round: what is signed for cannot be taken back.

        Raises:
            BudgetExhausted: nothing was charged, and nothing is signed.
            IntegrityFailed: the round was charged for another sum.
        """
        if opened.noise is not None and self._budget is not None:
            self._budget.charge(f"{opened.run_id} round {opened.round_id}", opened.noise.release)

    def _owned(self, plan: LearningPlan, terms: secagg.RoundSpec, work: Work) -> frozenset[BlockId]:
        """The sums of this round that this device adds to, and those of its measurements."""
        offered = {block.block_id for block in terms.blocks}
        owned = {in_bucket(block_id, work.bucket) for block_id in self._trainer.trains(plan) & set(work.blocks)}
        owned |= {TRAIN_LOSS, COHORT_WEIGHT, CLIP_BIT, NOISED_METRICS}
        if self._trainer.evaluates(plan):
            owned.add(METRICS)
        return frozenset(owned & offered)

    def _afford(self, noise: Mechanism) -> None:
        """Refuses a round whose noise keeps no promise, or which this device's own budget does not allow."""
        if problems := noise.problems():
            raise ConfigInvalid("The noise of this round cannot be used.", problems=problems)
        budget = self._budget
        if budget is not None and budget.would_exceed(noise.release):
            spent, limit = budget.spent(), budget.budget.epsilon
            raise PolicyRefused(f"Expected a round within epsilon={limit:g}, this device's own; spent are {spent:.4g}.")


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


def _same_work(terms: secagg.RoundSpec, work: Work) -> str:
    """What was trained, and for whose sums."""
    return _sha256(terms.work + terms.history + work.bucket.to_bytes(4, "big"))


def _begun(terms: secagg.RoundSpec) -> str:
    """Names the training of one round, whatever the attempt."""
    return _sha256(f"{terms.run_id} {terms.round_id} ".encode() + terms.work)


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
