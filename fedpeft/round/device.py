"""The device's side of a round: from a fit request to the last reply (docs/design.md, section 2).

The device validates, the coordinator proposes. Whatever cannot be done is answered by a ``Failure`` of constant bytes;
after the examples were touched not even by that (``fedpeft.round.failures``). One round is open at a time: a newer fit
request replaces an older one. What must outlive a kill between two messages is in the store before the reply leaves.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.config.check_private import expect_proved
from fedpeft.entropy import Entropy
from fedpeft.errors import BudgetExhausted, ConfigInvalid, IntegrityFailed, PolicyRefused, SpecMismatch
from fedpeft.ids import BlockId, RoundId
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS, Mechanism, PrivacyLedger, SampledRelease
from fedpeft.round.contribution import contribution
from fedpeft.round.example_privacy import ExamplePrivacy, OpenLedger
from fedpeft.round.failures import REFUSED, UNABLE, Tell, Trouble, cause_of, log_trouble
from fedpeft.round.local import (
    DeviceStore,
    Effort,
    HeldBlocks,
    Identity,
    OpenRound,
    SumSession,
    Trainer,
)
from fedpeft.round.messages import BlockPayload, Failure, FailureReason, FitRequest, Profile, ProfileRequest, Ready
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TRAIN_LOSS, in_bucket
from fedpeft.round.plan import LearningPlan
from fedpeft.round.size_class import declared_class
from fedpeft.round.transport import Stage
from fedpeft.secagg.spec import mechanism
from fedpeft.wire import WireError, decode, encode

__all__ = ["Device"]

Vector = npt.NDArray[np.float32]
HELD, OPEN = "held-blocks", "open-round"
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
            match stage:
                case Stage.PROFILE:
                    decode(payload, ProfileRequest)
                    return encode(self._profile())
                case Stage.FIT:
                    return encode(self._fit(decode(payload, FitRequest)))
                case Stage.SHARE | Stage.MASK | Stage.CONSIST | Stage.REVEAL:
                    return encode(self._answer(cast("secagg.Request", decode(payload, _LATER_REQUESTS))))

    def _profile(self) -> Profile:
        held = self._store.read(HELD)
        return Profile(
            device=self._identity.device,
            organisation=self._identity.organisation,
            identity=self._identity.public_key,
            methods=self._trainer.methods,
            held=decode(held, HeldBlocks).digests if held else (),
        )

    def _fit(self, request: FitRequest) -> Ready | Failure:
        """Stage 1: check, train, keep the input of the sum, advertise."""
        kept = self._store.read(OPEN)
        opened = decode(kept, OpenRound) if kept else None
        try:
            if opened is not None and opened.offer_sha256 == _sha256(request.offer):
                plan = LearningPlan.from_json(request.learning)
                return self._ready(opened.advertise, plan, self._cost(plan, request))  # it answers an offer once
            return self._take_part(request, opened)
        except Exception as error:  # of any kind: its text would say what it is about
            self._told(request.offer, cause_of(error))
            return REFUSED

    def _take_part(self, request: FitRequest, opened: OpenRound | None) -> Ready | Failure:
        plan = LearningPlan.from_json(request.learning)
        offer = decode(request.offer, secagg.RoundOffer)
        terms = decode(offer.spec, secagg.RoundSpec)
        if terms.run_id != plan.run_id:  # the terms are signed, the plan is not
            raise SpecMismatch(
                f"Expected the plan of run {terms.run_id}, as its signed terms say; found {plan.run_id}."
            )
        spec = self._trainer.spec(plan)
        if spec.digest != plan.adapter_spec:
            raise SpecMismatch(f"Expected adapter {plan.adapter_spec[:12]}, built {spec.digest[:12]} on this device.")
        state = self._receive(spec, request)
        if state is None:
            return Failure(reason=FailureReason.MISSING_STATE)
        noise = mechanism(terms)
        # The coordinator may have checked nothing.
        expect_proved(
            plan.adapter,
            plan.train,
            plan.aggregate,
            clients=noise is not None,
            examples=plan.privacy is not None,
            bucket=request.bucket,
        )
        if noise is not None:
            self._afford(noise)
        cost = self._cost(plan, request)
        if cost is not None:
            self._examples.afford(plan, cost)
        work = (terms.run_id, terms.round_id, _work(request))
        same = opened is not None and (opened.run_id, opened.round_id, opened.work_sha256, opened.noise) == (
            *work,
            noise,
        )
        owns = self._owned(plan, spec, terms, request)
        if opened is not None and same:  # what was trained then, though the device may train something else by now
            owns = frozenset(part.block_id for part in opened.inputs) & {block.block_id for block in terms.blocks}
        declared = declared_class(plan.aggregate, self._trainer.size_class(plan)) if noise is None else 0
        advertise = self._session.begin(offer, owns=owns, entropy=self._entropy, weight_class=declared)
        if isinstance(advertise, secagg.Refusal):
            self._told(request.offer, f"{advertise.reason.value}: {advertise.detail}")
            return Failure(reason=FailureReason.PROTOCOL)
        if opened is not None and same:
            inputs = opened.inputs  # another attempt at the same round: the training stands
        else:
            # The keys of the new round are out: from here on the inputs of an older one must not go under them,
            # not even if training fails. Two sums of the same inputs over two cohorts would tell them apart.
            tries = opened.tries if opened is not None and opened.begun_sha256 == _begun(request, terms) else 0
            begun = replace(_opened(terms), begun_sha256=_begun(request, terms), tries=tries + 1)
            self._store.write(OPEN, encode(begun))
            inputs, able = contribution(
                self._trainer,
                plan,
                request,
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
        ready = self._ready(encode(advertise), plan, cost)
        answered = replace(
            _opened(terms),
            offer_sha256=_sha256(request.offer),
            work_sha256=_work(request),
            advertise=ready.advertise,
            inputs=inputs,
        )
        self._store.write(OPEN, encode(answered))
        return ready

    def _told(self, offer: bytes, cause: str) -> None:
        """To this device's own operator; nobody else hears of it."""
        try:
            terms = decode(decode(offer, secagg.RoundOffer).spec, secagg.RoundSpec)
            self._tell(Trouble(run_id=terms.run_id, round_id=terms.round_id, cause=cause))
        except WireError:
            self._tell(Trouble(run_id="", round_id=0, cause=cause))

    def _cost(self, plan: LearningPlan, request: FitRequest) -> SampledRelease | None:
        return self._trainer.cost(plan) if request.train else None

    def _ready(self, advertise: bytes, plan: LearningPlan, cost: SampledRelease | None) -> Ready:
        return Ready(advertise=advertise, privacy=None if cost is None else self._examples.statement(plan, cost))

    def _answer(self, request: secagg.Request) -> secagg.Reply | Failure:
        """The later stages are the secure aggregation's; the kept input is all that is added."""
        kept = self._store.read(OPEN)
        if kept is None:
            return Failure(reason=FailureReason.PROTOCOL)
        opened = decode(kept, OpenRound)
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

    def _receive(self, spec: AdapterSpec, request: FitRequest) -> AdapterState | None:
        """The global state from what was sent and what is held; None when a block is missing."""
        held = self._store.read(HELD)
        blocks = {part.block_id: part.values for part in (decode(held, HeldBlocks).blocks if held else ())}
        blocks |= {part.block_id: part.values for part in request.payloads}
        vectors: dict[BlockId, Vector] = {}
        for entry in request.state:
            values = blocks.get(entry.block_id)
            if values is None or _sha256(values) != entry.sha256:
                return None
            if len(values) != 4 * spec[entry.block_id].size:
                raise SpecMismatch(
                    f"{entry.block_id}: expected {4 * spec[entry.block_id].size} bytes, found {len(values)}."
                )
            vectors[entry.block_id] = np.frombuffer(values, "<f4").astype(np.float32)
        state = AdapterState(spec, vectors)
        kept = tuple(BlockPayload(block_id=block_id, values=blocks[block_id]) for block_id in vectors)
        self._store.write(HELD, encode(HeldBlocks(digests=request.state, blocks=kept)))
        return state

    def _owned(
        self, plan: LearningPlan, spec: AdapterSpec, terms: secagg.RoundSpec, request: FitRequest
    ) -> frozenset[BlockId]:
        """The sums of this round that this device adds to, and the metrics; lengths checked against its own build."""
        offered = {block.block_id: block.length for block in terms.blocks}
        owned = set()
        for block_id in self._trainer.trains(plan) & set(request.blocks):
            name = in_bucket(block_id, request.bucket)
            if name in offered:
                if offered[name] != spec[block_id].size:
                    raise SpecMismatch(f"{name}: expected length {spec[block_id].size}, offered {offered[name]}.")
                owned.add(name)
        measured = {TRAIN_LOSS, COHORT_WEIGHT, CLIP_BIT, NOISED_METRICS}
        if self._trainer.evaluates(plan):
            measured.add(METRICS)
        return frozenset(owned | (measured & offered.keys()))

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
        advertise=b"",
        inputs=(),
        attempt=terms.attempt,
        noise=mechanism(terms),
    )


def _work(request: FitRequest) -> str:
    """What a fit request asks to compute, apart from the terms of the sum and from what it happens to carry."""
    return _sha256(encode(replace(request, offer=b"", payloads=())))


def _begun(request: FitRequest, terms: secagg.RoundSpec) -> str:
    """Names the training of one round, whatever the attempt."""
    return _sha256(f"{terms.run_id} {terms.round_id} {_work(request)}".encode())


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
