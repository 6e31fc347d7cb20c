"""The coordinator's side of one secure sum (docs/protocol.md, "Coordinator").

    open_round -> (receive | reject)* -> close_stage -> ... -> Summed | Aborted

Pure and total: no clock, file, network or log; no reply raises. A reply that breaks the rules puts its sender out of
the round with a reason and changes nothing else; duplicates and stragglers are ignored. The caller sends
``state.requests`` and calls ``close_stage`` at the stage's deadline or when ``state.waiting`` is empty. Memory: one
accumulator per block, whatever the number of devices, and the small messages of one stage.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedpeft.entropy import Entropy
from fedpeft.ids import ParticipantId
from fedpeft.secagg.coordinator_close import close
from fedpeft.secagg.coordinator_state import (
    Agreeing,
    CoordinatorState,
    Fitting,
    Masking,
    Members,
    Open,
    Progress,
    Rejection,
    Revealing,
    ShareName,
    Sharing,
    SignedTerms,
)
from fedpeft.secagg.messages import (
    Advertise,
    Agreement,
    EncryptedShares,
    MaskedInput,
    Reason,
    Refusal,
    Reply,
    RevealedShares,
    RoundOffer,
)
from fedpeft.secagg.offer import encode_spec
from fedpeft.secagg.primitives import KEY_SIZE, AgreementKey, IdentityKey, Secret, is_authentic, is_signed
from fedpeft.secagg.spec import MAX_WEIGHT_CLASS, Participant, RoundSpec, block_encoding, check_spec
from fedpeft.secagg.transcript import (
    STAGE_CONSIST,
    STAGE_MASK,
    STAGE_REVEAL,
    STAGE_SHARE,
    advert_digest,
    agreement_digest,
    id_bytes,
    masked_digest,
    offer_context,
    sharers_context,
    survivors_context,
)
from fedpeft.secagg.unmask import named_shares

__all__ = ["close_stage", "open_round", "receive", "reject"]

REPLY_ORDER: Mapping[type, int] = {
    Advertise: 0,
    EncryptedShares: 1,
    MaskedInput: 2,
    Agreement: 3,
    RevealedShares: 4,
}
STAGE_ORDER: Mapping[type, int] = {Fitting: 0, Sharing: 1, Masking: 2, Agreeing: 3, Revealing: 4}


class _Bad(Exception):
    """A reply that breaks the rules, on its way to becoming a ``Rejection``."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason=reason, detail=detail)


def open_round(spec: RoundSpec, *, identity: IdentityKey, entropy: Entropy) -> Open:
    """Signs the terms; the first requests are the offers.

    Args:
        spec: the terms.
        identity: the coordinator's key that devices know from enrolment.
        entropy: asked for 32 bytes, the seed of this attempt's channel key.

    Raises:
        ConfigInvalid: terms that contradict themselves or overflow.
    """
    check_spec(spec)
    seed = Secret(entropy(KEY_SIZE))
    terms, roster = encode_spec(spec)
    channel = AgreementKey(seed.value).public
    unsigned = RoundOffer(spec=terms, roster=roster, coordinator_channel=channel, signature=b"")
    context = offer_context(unsigned)
    offer = replace(unsigned, signature=identity.sign(context))
    return Open(
        terms=SignedTerms(spec=spec, offer=offer, context=context, channel_seed=seed),
        requests={peer.participant_id: offer for peer in spec.participants},
        answered=frozenset(),
        rejected={},
        progress=Fitting(),
    )


def receive(state: CoordinatorState, sender: ParticipantId, reply: Reply) -> CoordinatorState:
    """Takes one reply.

    Args:
        state: consumed; use the returned one.
        sender: who the transport says it is from.
        reply: decoded from the wire; call ``reject`` if it could not be decoded.
    """
    if not isinstance(state, Open) or not state.waits_for(sender):
        return state  # an ended round, a stranger, a duplicate, or one that is out already
    if isinstance(reply, Refusal):
        return reject(state, sender, reply.reason, f"refused: {reply.detail}")
    if REPLY_ORDER[type(reply)] < STAGE_ORDER[type(state.progress)]:
        return state  # a straggler of an earlier stage
    try:
        progress = _accept(state, sender, reply)
    except _Bad as bad:
        return reject(state, sender, bad.rejection.reason, bad.rejection.detail)
    return replace(state, progress=progress, answered=state.answered | {sender})


def reject(state: CoordinatorState, sender: ParticipantId, reason: Reason, detail: str) -> CoordinatorState:
    """Puts a device out of the round; one that has answered this stage already stays in."""
    if not isinstance(state, Open) or not state.waits_for(sender):
        return state
    return replace(state, rejected={**state.rejected, sender: Rejection(reason=reason, detail=detail)})


def close_stage(state: CoordinatorState) -> CoordinatorState:
    """Ends the stage with those who have answered; the others dropped out. An ended round stays as it is."""
    if not isinstance(state, Open):
        return state
    late = Rejection(reason=Reason.DROPPED_OUT, detail=f"no reply in stage {state.stage}")
    return close(replace(state, rejected={**state.rejected, **dict.fromkeys(state.waiting, late)}))


def _accept(state: Open, sender: ParticipantId, reply: Reply) -> Progress:
    match state.progress, reply:
        case Fitting() as fitting, Advertise():
            _check_advert(state.terms, sender, reply)
            return replace(fitting, adverts={**fitting.adverts, sender: reply})
        case Sharing() as sharing, EncryptedShares():
            _check_ciphertexts(sharing.members, sender, reply)
            return replace(sharing, ciphertexts={**sharing.ciphertexts, sender: reply.ciphertexts})
        case Masking() as masking, MaskedInput():
            _check_vectors(state.terms.spec, masking, sender, reply)
            return _added(masking, sender, reply)
        case Agreeing() as agreeing, Agreement():
            _check_agreement(agreeing, sender, reply)
            return replace(agreeing, signatures={**agreeing.signatures, sender: reply.signature})
        case Revealing() as revealing, RevealedShares():
            shares = _revealed(revealing, sender, reply)
            return replace(revealing, shares={**revealing.shares, sender: shares})
        case _:
            raise _Bad(Reason.OUT_OF_ORDER, f"Expected no {type(reply).__name__} in stage {state.stage}.")


def _check_advert(terms: SignedTerms, sender: ParticipantId, advert: Advertise) -> None:
    if advert.participant_id != sender:
        raise _Bad(Reason.BAD_SIGNATURE, f"Expected the advert of {sender}, found that of {advert.participant_id}.")
    if advert.context != terms.context:
        raise _Bad(Reason.WRONG_ROUND, "Expected an advert of this attempt, found another's.")
    declared = tuple(block.block_id for block in terms.spec.blocks if block.block_id in set(advert.blocks))
    if declared != advert.blocks or not declared:
        raise _Bad(Reason.BLOCK_NOT_DECLARED, f"Expected blocks of the terms in order, found {advert.blocks}.")
    if not 0 <= advert.weight_class <= MAX_WEIGHT_CLASS:
        raise _Bad(Reason.MALFORMED, f"Expected a weight class of 0..{MAX_WEIGHT_CLASS}, found {advert.weight_class}.")
    problem = _advert_problem(advert, terms.spec.participants[sender - 1])
    if problem is not None:
        raise _Bad(Reason.BAD_SIGNATURE, f"Expected a valid advert; {problem}.")


def _advert_problem(advert: Advertise, peer: Participant) -> str | None:
    """What is wrong with an advert of these terms, in words; None if it is whole and signed by this participant."""
    if any(len(key) != KEY_SIZE for key in (advert.channel_key, advert.mask_key, *advert.commitments)):
        return "it holds malformed keys"
    if len(advert.commitments) != len(advert.blocks):
        return "it commits to other seeds than those of its blocks"
    if (advert.device, advert.organisation) != (peer.device, peer.organisation):
        return "it names another device or organisation than the roster"
    if not is_signed(peer.identity, advert.signature, advert_digest(advert)):
        return "it is not signed by the identity on the roster"
    return None


def _check_ciphertexts(members: Members, sender: ParticipantId, reply: EncryptedShares) -> None:
    roster = members.roster
    _check_context(reply.context, roster.context)
    holders = len(roster.sharing_neighbours(sender))
    expected = holders * roster.ciphertext_size(sender)
    if len(reply.ciphertexts) != expected:
        raise _Bad(
            Reason.BAD_LENGTH,
            f"Expected {holders} ciphertexts of together {expected} B, found {len(reply.ciphertexts)} B.",
        )
    _check_tag(members, sender, STAGE_SHARE, [roster.context, reply.ciphertexts], reply.tag)


def _check_vectors(spec: RoundSpec, masking: Masking, sender: ParticipantId, reply: MaskedInput) -> None:
    """Everything is checked before anything is added: a bad upload leaves no trace in the sums."""
    roster = masking.members.roster
    _check_context(reply.context, sharers_context(roster.context, masking.sharers))
    owned = roster.owned_by(sender)
    if len(reply.vectors) != len(owned):
        raise _Bad(Reason.BAD_LENGTH, f"Expected {len(owned)} vectors, found {len(reply.vectors)}.")
    for index, vector in zip(owned, reply.vectors, strict=True):
        expected = block_encoding(spec, spec.blocks[index]).size_bytes
        if len(vector) != expected:
            raise _Bad(
                Reason.BAD_LENGTH, f"{spec.blocks[index].block_id}: expected {expected} bytes, found {len(vector)}."
            )
    neighbours = roster.sharing_neighbours(sender)
    if len(set(reply.unopened)) != len(reply.unopened) or not set(neighbours).issuperset(reply.unopened):
        raise _Bad(Reason.BAD_ROSTER, "Expected unopened ciphertexts of neighbours, each once, found others.")
    parts = [reply.context, b"".join(map(id_bytes, reply.unopened)), *reply.vectors]
    _check_tag(masking.members, sender, STAGE_MASK, parts, reply.tag)
    _check_signature(masking.members, sender, reply.signature, masked_digest(reply.context, sender))


def _added(masking: Masking, sender: ParticipantId, reply: MaskedInput) -> Masking:
    roster = masking.members.roster
    for index, vector in zip(roster.owned_by(sender), reply.vectors, strict=True):
        total = masking.sums[roster.spec.blocks[index].block_id]
        np.add(total, np.frombuffer(vector, total.dtype), out=total)
    unopened = dict(masking.unopened)
    for dealer in reply.unopened:
        unopened[dealer] = unopened.get(dealer, frozenset()) | {sender}
    return replace(masking, unopened=unopened, signatures={**masking.signatures, sender: reply.signature})


def _check_agreement(agreeing: Agreeing, sender: ParticipantId, reply: Agreement) -> None:
    members = agreeing.masked.members
    context = survivors_context(sharers_context(members.roster.context, agreeing.masked.sharers), agreeing.bitmap)
    _check_context(reply.context, context)
    _check_tag(members, sender, STAGE_CONSIST, [context, reply.signature], reply.tag)
    _check_signature(members, sender, reply.signature, agreement_digest(context, sender))


def _revealed(revealing: Revealing, sender: ParticipantId, reply: RevealedShares) -> Mapping[ShareName, bytes]:
    _check_context(reply.context, revealing.context)
    parts = [reply.context, reply.opened, reply.shares]
    _check_tag(revealing.masked.members, sender, STAGE_REVEAL, parts, reply.tag)
    shares = named_shares(revealing, sender, reply)
    if shares is None:
        raise _Bad(
            Reason.BAD_LENGTH, f"Expected as many shares as the opened blocks imply, found {len(reply.shares)} B."
        )
    return shares


def _check_context(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise _Bad(Reason.WRONG_ROUND, "Expected a reply about this attempt, roster and survivor set.")


def _check_signature(members: Members, sender: ParticipantId, signature: bytes, text: bytes) -> None:
    """What the others will be shown: one bad signature would end the attempt for all of them."""
    if not is_signed(members.roster.spec.participants[sender - 1].identity, signature, text):
        raise _Bad(Reason.BAD_SIGNATURE, "Expected a signature by the identity on the roster.")


def _check_tag(members: Members, sender: ParticipantId, stage: int, parts: list[bytes], tag: bytes) -> None:
    if not is_authentic(members.reply_keys[sender].value, stage, parts, tag):
        raise _Bad(Reason.BAD_SIGNATURE, "Expected a reply authenticated with this round's key.")
