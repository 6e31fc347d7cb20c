"""A device that survives crashes: the pure state machine of ``device.py`` around a ledger.

load -> step -> save -> reply. The reply leaves this module only after the state that gave it is durable, so a device
that is killed between any two messages goes on where it was, and never answers twice differently.
"""

import threading
from collections.abc import Callable, Set
from dataclasses import replace

from fedpeft.entropy import Entropy
from fedpeft.ids import SIZELESS, BlockId, SizeClass
from fedpeft.secagg.device import answer, begin, examine
from fedpeft.secagg.device_mask import Inputs
from fedpeft.secagg.device_reveal import AgreedSum, agreed_sum
from fedpeft.secagg.device_state import (
    Advertised,
    Agreed,
    DeviceState,
    DeviceStep,
    Failed,
    HighWaterMark,
    Masked,
    Shared,
)
from fedpeft.secagg.ledger import Ledger
from fedpeft.secagg.messages import MaskRequest, Reason, Refusal, Reply, Request, RoundOffer
from fedpeft.secagg.offer import one_copy, open_spec, open_terms, roster_digest
from fedpeft.secagg.policy import DevicePolicy, Directory, Enrolled, colluders_objection
from fedpeft.secagg.primitives import IdentityKey, is_signed
from fedpeft.secagg.spec import RoundSpec
from fedpeft.secagg.transcript import offer_context
from fedpeft.wire import WireError

__all__ = ["DeviceSession"]


def _nothing() -> None:
    """For a device whose site counts no budget."""


class DeviceSession:
    """One device's secure sums, one round per run at a time.

    Args:
        ledger: its memory.
        identity: its enrolled key.
        enrolled: its name and organisation.
        policy: what its site demands.
        directory: what its site knows of the other devices; None: what the coordinator says of them.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        identity: IdentityKey,
        enrolled: Enrolled,
        policy: DevicePolicy,
        directory: Directory | None = None,
    ) -> None:
        self._ledger, self._identity, self._enrolled, self._policy = ledger, identity, enrolled, policy
        self._directory = directory
        self._lock = threading.Lock()

    def examine(self, offer: RoundOffer) -> RoundSpec | Refusal:
        """The offer's terms if this device may answer it: signed, allowed, and beyond what it has answered already.

        The offer that is being answered passes again; nothing is kept.
        """
        try:
            run_id = open_terms(offer.spec).run_id
        except WireError as error:
            return Refusal(reason=Reason.MALFORMED, detail=str(error))
        with self._lock:
            state, mark = self._ledger.load(run_id), self._ledger.mark(run_id)
        offer = _whole(offer, state, self._policy.coordinator_key)
        again = (
            state is not None
            and state.participation is not None
            and state.participation.context == offer_context(offer)
        )
        return examine(
            offer,
            identity=self._identity.public,
            enrolled=self._enrolled,
            policy=self._policy,
            mark=None if again else mark,
        )

    @property
    def coordinator(self) -> bytes:
        """The enrolled coordinator's public key."""
        return self._policy.coordinator_key

    def mark(self, run_id: str) -> HighWaterMark | None:
        """How far this device has gone in a run; None: it never took part."""
        with self._lock:
            return self._ledger.mark(run_id)

    def begin(
        self, offer: RoundOffer, *, owns: Set[BlockId], entropy: Entropy, weight_class: SizeClass = SIZELESS
    ) -> Reply:
        """Answers FIT; the same offer gets the same reply, a refused one changes nothing.

        Args:
            offer: the signed terms.
            owns: the blocks that this device adds to.
            entropy: for the attempt's keys.
            weight_class: of its public size, 0..63; declared in the signed advert.
        """
        try:
            run_id = open_terms(offer.spec).run_id
        except WireError as error:
            return Refusal(reason=Reason.MALFORMED, detail=str(error))
        with self._lock:
            state = self._ledger.load(run_id)
            offer = _whole(offer, state, self._policy.coordinator_key)
            if (
                state is not None
                and state.participation is not None
                and state.participation.context == offer_context(offer)
            ):
                return answer(state, offer, identity=self._identity).reply
            step = begin(
                offer,
                owns=owns,
                identity=self._identity,
                enrolled=self._enrolled,
                policy=self._policy,
                entropy=entropy,
                weight_class=weight_class,
                mark=self._ledger.mark(run_id),
            )
            if isinstance(step.state, Advertised) and self._directory is not None:
                step = _with_directory(step, step.state, self._directory)
            if isinstance(step.state, Advertised):
                if self._ledger.barrier and self._ledger.mark(run_id) is None:
                    return self._sit_out(open_spec(offer))
                self._ledger.save(run_id, step.state)
            return step.reply

    def answer(
        self,
        run_id: str,
        request: Request,
        *,
        inputs: Callable[[], Inputs] | None = None,
        rounding: Entropy | None = None,
        before_masking: Callable[[], None] = _nothing,
    ) -> Reply:
        """Answers a later request.

        Args:
            run_id: the run it belongs to.
            request: decoded from the wire.
            inputs: called only when the vectors are needed, once.
            rounding: seeds the stochastic rounding.
            before_masking: called once per attempt, when the device is about to send its masked input, before anything
                of that is remembered or sent. What it raises leaves everything as it was. From there on the others
                can open the sum without this device: a quorum need not hold everybody.
        """
        with self._lock:
            state = self._ledger.load(run_id)
            if state is None:
                return Refusal(reason=Reason.OUT_OF_ORDER, detail=f"Expected an open round of {run_id}, found none.")
            needs_inputs = isinstance(state, Shared) and isinstance(request, MaskRequest)
            vectors = inputs() if needs_inputs and inputs is not None else None
            step = answer(state, request, identity=self._identity, inputs=vectors, rounding=rounding)
            if step.state is not state:
                if isinstance(step.state, Masked):
                    before_masking()
                self._ledger.save(run_id, step.state)
            return step.reply

    def agreed(self, run_id: str) -> AgreedSum | None:
        """The sum that this device has signed for and not revealed of yet; None if there is none."""
        with self._lock:
            state = self._ledger.load(run_id)
        return agreed_sum(state) if isinstance(state, Agreed) else None

    def _sit_out(self, spec: RoundSpec) -> Refusal:
        """The ledger before this one was lost: whether this device has signed in this round nobody knows."""
        self._ledger.sit_out(spec.run_id, HighWaterMark(round_id=spec.round_id, attempt=spec.attempt, agreed=True))
        return Refusal(
            reason=Reason.REPLAYED,
            detail=f"This device's ledger was reset: it sits out round {spec.round_id} of {spec.run_id}.",
        )


def _whole(offer: RoundOffer, state: DeviceState | None, coordinator: bytes) -> RoundOffer:
    """The offer with its roster: that which came with it, or that of the run's last round here, if it is the same.

    Of all the devices of a process one copy is kept, of rows that the coordinator has signed for.
    """
    held = state.participation.offer.roster if state is not None and state.participation is not None else b""
    signed = open_terms(offer.spec).roster
    if not offer.roster and roster_digest(held) == signed:
        return replace(offer, roster=one_copy(held))
    if roster_digest(offer.roster) == signed and is_signed(coordinator, offer.signature, offer_context(offer)):
        return replace(offer, roster=one_copy(offer.roster))
    return offer


def _with_directory(step: DeviceStep, state: Advertised, directory: Directory) -> DeviceStep:
    """The step after the site's directory was asked: only now, since by now the terms are known to be signed.

    Devices that the site has not confirmed count as colluders: terms that hold against fewer are refused, since a
    roster filled up with invented devices opens whatever was sent.
    """
    participation, spec = state.participation, open_spec(state.participation.offer)
    judged = directory.admit(spec.participants)
    objection = judged if isinstance(judged, str) else colluders_objection(spec, len(spec.participants), judged)
    if objection is not None or isinstance(judged, str):
        refusal = Refusal(reason=Reason.POLICY, detail=objection or "")
        return DeviceStep(Failed(participation=participation, reason=refusal.reason, detail=refusal.detail), refusal)
    floor = max(participation.min_colluders, judged)
    return replace(step, state=replace(state, participation=replace(participation, min_colluders=floor)))
