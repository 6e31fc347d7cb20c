"""The device's side of one secure sum: ``step(state, request) -> step`` (docs/protocol.md, "Device").

Pure and total: no clock, file, network or log; randomness comes in; a request that breaks the protocol leads to
``Failed`` and a ``Refusal``, never to an exception. The coordinator proposes, the device validates: it recomputes
graph, threshold and ring bounds from the terms. What each stage does is in ``device_share``, ``device_mask``
and ``device_reveal``.

Guarantees (tests/secagg/test_device.py, tests/secagg/test_hostile_coordinator.py):
- of each peer it reveals one kind of secret only, once: test_a_device_never_reveals_both_secrets;
- a repeated request gets the same bytes: test_a_repeated_request_gets_the_same_reply;
- another request for an answered stage ends the attempt: test_a_second_different_request_ends_the_attempt;
- nothing of a block with too few organisations is revealed: test_a_block_below_its_cohort_stays_masked.
"""

from collections.abc import Set
from dataclasses import replace

from fedpeft.entropy import Entropy, os_entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.ids import SIZELESS, BlockId, ParticipantId, SizeClass
from fedpeft.secagg.device_mask import Inputs, mask
from fedpeft.secagg.device_reveal import consist, reveal
from fedpeft.secagg.device_share import share
from fedpeft.secagg.device_state import (
    Advertised,
    Agreed,
    Closed,
    DeviceState,
    DeviceStep,
    Failed,
    HighWaterMark,
    Masked,
    Participation,
    Shared,
    Violation,
    secret_keys,
)
from fedpeft.secagg.messages import (
    Advertise,
    ConsistRequest,
    MaskRequest,
    Reason,
    Refusal,
    Reply,
    Request,
    RevealRequest,
    RoundOffer,
    ShareRequest,
)
from fedpeft.secagg.offer import open_checked, open_terms
from fedpeft.secagg.policy import DevicePolicy, Enrolled, policy_objection
from fedpeft.secagg.primitives import KEY_SIZE, IdentityKey, Secret, is_signed
from fedpeft.secagg.spec import Mode, RoundSpec
from fedpeft.secagg.transcript import (
    advert_digest,
    commitment,
    fingerprint,
    offer_context,
    roster_context,
    sharers_context,
)
from fedpeft.wire import WireError

__all__ = ["answer", "begin", "examine"]


def begin(
    offer: RoundOffer,
    *,
    owns: Set[BlockId],
    identity: IdentityKey,
    enrolled: Enrolled,
    policy: DevicePolicy,
    entropy: Entropy,
    weight_class: SizeClass = SIZELESS,
    mark: HighWaterMark | None = None,
) -> DeviceStep:
    """Answers FIT: checks the signed terms and makes this attempt's keys.

    Args:
        offer: the signed terms.
        owns: the blocks this device will upload; a subset of the terms' blocks, not empty.
        identity: the enrolled key; signs the advert here, and later what this device masked for and agreed to.
        enrolled: the device's name and organisation; a roster that says otherwise is refused.
        policy: what the site demands.
        entropy: asked for 32 bytes, the root of every secret of the attempt. Never a seeded source outside tests.
        weight_class: of its public size, 0..63.
        mark: where this device stands in the run, from its ledger.

    Returns:
        ``Advertised`` with an ``Advertise``, or ``Failed`` with a ``Refusal``.
    """
    try:
        participation = _joined(offer, owns, identity.public, enrolled, policy, mark)
    except Violation as violation:
        return _failed(None, violation)
    root = Secret(entropy(KEY_SIZE))
    keys = secret_keys(root, participation)
    unsigned = Advertise(
        context=participation.context,
        participant_id=participation.me,
        device=enrolled.device,
        organisation=enrolled.organisation,
        weight_class=weight_class,
        blocks=participation.owns,
        channel_key=keys.channel.public,
        mask_key=keys.mask.public,
        commitments=tuple(
            commitment(participation.context, participation.me, block, seed.value)
            for block, seed in zip(participation.owns, keys.self_seeds, strict=True)
        ),
        signature=b"",
    )
    reply = replace(unsigned, signature=identity.sign(advert_digest(unsigned)))
    return DeviceStep(Advertised(participation=participation, root=root, reply=reply), reply)


def examine(
    offer: RoundOffer, *, identity: bytes, enrolled: Enrolled, policy: DevicePolicy, mark: HighWaterMark | None = None
) -> RoundSpec | Refusal:
    """The terms of an offer, once all is checked that needs no work; arguments as in ``begin``, ``identity`` public.

    Nothing that the offer speaks of may be fetched, built or computed before this has returned terms.
    """
    try:
        return _accepted(offer, identity, enrolled, policy, mark)[1]
    except Violation as violation:
        return Refusal(reason=violation.reason, detail=violation.detail)


def answer(
    state: DeviceState,
    request: Request,
    *,
    identity: IdentityKey,
    inputs: Inputs | None = None,
    rounding: Entropy | None = None,
    noise: Entropy = os_entropy,
) -> DeviceStep:
    """Answers any later request.

    Args:
        state: of this attempt.
        request: decoded from the wire.
        identity: the enrolled key.
        inputs: read for the first ``MaskRequest`` only: for each owned block its (P,) float32 vector.
        rounding: read with ``inputs``: asked for 32 bytes per block to seed the stochastic rounding. May be seeded.
        noise: asked for 32 bytes if the terms have noise, which they seed. The operating system's; a test may pass
            another, a run must not: two contributions under the same noise reveal their difference.

    Returns:
        The next state and reply; the same state and reply for a repeat; the same state and a ``Refusal`` for a stray
        message of another round or stage; ``Failed`` and a ``Refusal`` for a violation.
    """
    try:
        match state, request:
            case Advertised(), ShareRequest():
                _same_context(request.context, state.participation.context)
                return _step(share(state, request))
            case Shared(), MaskRequest():
                _same_context(request.context, state.asked)
                if inputs is None or rounding is None:
                    raise Violation(Reason.BAD_INPUT, "Expected the trained vectors, found none.")
                return _step(mask(state, request, inputs, identity, rounding, noise))
            case Masked(), ConsistRequest() if _mode(state.participation) is Mode.FULL:
                _same_context(request.context, state.reply.context)
                return _step(consist(state, request, identity))
            case Masked(), RevealRequest() if _mode(state.participation) is Mode.FAST:
                _same_context(request.context, state.reply.context)
                return _step(reveal(state, request))
            case Agreed(), RevealRequest():
                _same_context(request.context, sharers_context(roster_context(state.roster), state.sharers))
                return _step(reveal(state, request))
            case _:
                return _repeat(state, request)
    except Violation as violation:
        if violation.reason in (Reason.WRONG_ROUND, Reason.OUT_OF_ORDER):
            return DeviceStep(state, Refusal(reason=violation.reason, detail=violation.detail))
        return _failed(state.participation, violation)


def _joined(
    offer: RoundOffer,
    owns: Set[BlockId],
    identity: bytes,
    enrolled: Enrolled,
    policy: DevicePolicy,
    mark: HighWaterMark | None,
) -> Participation:
    context, spec, me = _accepted(offer, identity, enrolled, policy, mark)
    ordered = tuple(block.block_id for block in spec.blocks if block.block_id in owns)
    if not ordered or len(ordered) != len(owns):
        raise Violation(Reason.BLOCK_NOT_DECLARED, f"Expected blocks of the terms, found {sorted(owns)}.")
    return Participation(
        offer=offer,
        context=context,
        me=me,
        owns=ordered,
        min_cohort=max(spec.min_cohort, policy.min_cohort),
        min_colluders=policy.min_colluders,
    )


def _accepted(
    offer: RoundOffer, identity: bytes, enrolled: Enrolled, policy: DevicePolicy, mark: HighWaterMark | None
) -> tuple[bytes, RoundSpec, ParticipantId]:
    """Context, terms and this device's place: signed, well formed, allowed, beyond the mark, with it on the roster."""
    context = offer_context(offer)
    if not is_signed(policy.coordinator_key, offer.signature, context):
        raise Violation(Reason.BAD_SIGNATURE, "Expected terms signed by the enrolled coordinator, found another key.")
    if not offer.roster:
        raise Violation(Reason.MISSING_ROSTER, "Expected the roster of these terms, found none here.")
    try:
        spec = open_checked(offer)
    except (WireError, ConfigInvalid) as error:
        raise Violation(Reason.BAD_TERMS, str(error)) from error
    objection = policy_objection(policy, spec)
    if objection is not None:
        raise Violation(Reason.POLICY, objection)
    _check_mark(spec, mark)
    mine = [peer for peer in spec.participants if peer.identity == identity]
    if not mine:
        raise Violation(Reason.NOT_ON_ROSTER, "Expected this device's identity on the roster, found it nowhere.")
    if (mine[0].device, mine[0].organisation) != (enrolled.device, enrolled.organisation):
        raise Violation(Reason.BAD_ROSTER, "Expected this device's name and organisation as enrolled, found others.")
    return context, spec, mine[0].participant_id


def _check_mark(spec: RoundSpec, mark: HighWaterMark | None) -> None:
    """A device never goes back, and never tries a round again for which it has agreed to a survivor set."""
    if mark is None or spec.round_id > mark.round_id:
        return
    if spec.round_id < mark.round_id or spec.attempt <= mark.attempt or mark.agreed:
        raise Violation(
            Reason.REPLAYED,
            f"Expected a round after {mark.round_id}{'' if mark.agreed else f' or attempt after {mark.attempt}'}, "
            f"found round {spec.round_id}, attempt {spec.attempt}.",
        )


def _repeat(state: DeviceState, request: Request) -> DeviceStep:
    """The cached reply to a repeat; a refusal to anything else."""
    match state, request:
        case Failed(), _:
            return DeviceStep(state, Refusal(reason=state.reason, detail=state.detail))
        case Advertised(), RoundOffer():
            asked, context, answered = (
                fingerprint(state.participation.offer),
                fingerprint(request),
                state.participation.context,
            )
        case Shared(), ShareRequest():
            asked, context, answered = state.asked, request.context, state.participation.context
        case Masked(), MaskRequest():
            asked, context, answered = state.asked, request.context, roster_context(state.roster)
        case Agreed(), ConsistRequest():
            answered = sharers_context(roster_context(state.roster), state.sharers)
            asked, context = state.asked, request.context
        case Closed(), RevealRequest():
            asked, context, answered = state.asked, request.context, b""
        case _:
            raise Violation(
                Reason.OUT_OF_ORDER, f"Expected no {type(request).__name__} in state {type(state).__name__}."
            )
    if fingerprint(request) == asked:
        return DeviceStep(state, state.reply)
    _same_context(context, answered)
    raise Violation(Reason.EQUIVOCATION, f"Expected one {type(request).__name__}, found a second, different one.")


def _mode(participation: Participation) -> Mode:
    return open_terms(participation.offer.spec).mode


def _same_context(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise Violation(Reason.WRONG_ROUND, "Expected a request of this attempt, roster and survivor set.")


def _step(state: Shared | Masked | Agreed | Closed) -> DeviceStep:
    reply: Reply = state.reply
    return DeviceStep(state, reply)


def _failed(participation: Participation | None, violation: Violation) -> DeviceStep:
    refusal = Refusal(reason=violation.reason, detail=violation.detail)
    return DeviceStep(Failed(participation=participation, reason=violation.reason, detail=violation.detail), refusal)
