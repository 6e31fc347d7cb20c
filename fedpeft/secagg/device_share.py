"""The device's SHARE stage: check the roster, deal the shares (docs/protocol.md, "SHARE")."""

from dataclasses import replace

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg.device_secrets import Violation, agree, reply_key, roster_of, secret_keys
from fedpeft.secagg.device_state import Advertised, Shared
from fedpeft.secagg.messages import Advertise, EncryptedShares, Reason, ShareRequest
from fedpeft.secagg.primitives import KEY_SIZE, Secret, authenticate, expand, is_signed, prf, seal
from fedpeft.secagg.roster import Roster
from fedpeft.secagg.shamir import COEFFICIENT_BYTES, split
from fedpeft.secagg.spec import MAX_WEIGHT_CLASS, Participant
from fedpeft.secagg.transcript import (
    STAGE_SHARE,
    advert_digest,
    associated_data,
    channel_secret,
    encryption_key,
    encryption_nonce,
    id_bytes,
)

__all__ = ["advert_problem", "share"]


def share(state: Advertised, request: ShareRequest) -> Shared:
    """Checks the roster, then seals a share of every secret for every sharing neighbour."""
    participation, roster = state.participation, roster_of(state.participation, request)
    peers = _checked_peers(state, request, roster)
    keys, holders = secret_keys(state.root, participation), roster.sharing_neighbours(participation.me)
    secrets = [keys.mask_seed.value, *(seed.value for seed in keys.self_seeds)]
    size = COEFFICIENT_BYTES * (roster.degree.threshold - 1)
    coefficients = [
        expand(prf(state.root.value, "coefficients", roster.context + id_bytes(index)), size)
        for index in range(len(secrets))
    ]
    shares = split(secrets, roster.degree.threshold, holders, coefficients)
    ciphertexts, channels = [], []
    for index, holder in enumerate(holders):
        channel = channel_secret(agree(keys.channel, peers[holder].channel_key), roster.context)
        ciphertexts.append(
            seal(
                encryption_key(channel),
                encryption_nonce(participation.me),
                shares[index],
                associated_data(roster.context, participation.me, holder),
            )
        )
        channels.append(channel)
    sealed = b"".join(ciphertexts)
    tag = authenticate(reply_key(keys.channel, participation), STAGE_SHARE, [roster.context, sealed])
    return Shared(
        participation=participation,
        root=state.root,
        asked=roster.context,
        roster=replace(request, adverts=()),
        peers=request.adverts,
        channels=Secret(b"".join(channels)),
        reply=EncryptedShares(context=roster.context, ciphertexts=sealed, tag=tag),
    )


def advert_problem(
    advert: Advertise, found: bytes, blocks: tuple[BlockId, ...], context: bytes, peer: Participant
) -> str | None:
    """What is wrong with an advert, in words; None if it is whole and signed by the device on the roster.

    Args:
        advert: what a device, or the coordinator in its name, sent.
        found: its digest.
        blocks: the blocks that it must declare.
        context: of the offer.
        peer: the sender's row of the roster.
    """
    keys = (advert.channel_key, advert.mask_key, *advert.commitments)
    if advert.context != context or any(len(key) != KEY_SIZE for key in keys):
        return "it belongs to another attempt or holds malformed keys"
    if not blocks or advert.blocks != blocks or len(advert.commitments) != len(blocks):
        return "it declares other blocks"
    if (advert.device, advert.organisation) != (peer.device, peer.organisation):
        return "it names another device or organisation than the roster"
    if not 0 <= advert.weight_class <= MAX_WEIGHT_CLASS:
        return "it declares a weight class that does not exist"
    if not is_signed(peer.identity, advert.signature, found):
        return "it is not signed by the identity on the roster"
    return None


def _checked_peers(state: Advertised, request: ShareRequest, roster: Roster) -> dict[ParticipantId, Advertise]:
    """The adverts, every signature checked: of all neighbours at least; ourselves as we advertised."""
    me, blocks = state.participation.me, roster.spec.blocks
    if me not in roster.place or roster.digests[roster.place[me]] != advert_digest(state.reply):
        raise Violation(Reason.BAD_ROSTER, "Expected our own advert on the roster, found none or another one.")
    owned = {member: roster.owned_by(member) for member in (me, *(a.participant_id for a in request.adverts))}
    if roster.classes[roster.place[me]] != state.reply.weight_class:
        raise Violation(Reason.BAD_ROSTER, "Expected the weight class that we declared, found another.")
    if tuple(blocks[index].block_id for index in owned[me]) != state.participation.owns:
        raise Violation(Reason.BAD_ROSTER, "Expected us to own what we declared, found other blocks.")
    peers: dict[ParticipantId, Advertise] = {}
    for advert in request.adverts:
        peer = advert.participant_id
        if peer == me or peer in peers or peer not in roster.place:
            raise Violation(Reason.BAD_ROSTER, f"Expected each member's advert at most once, found {peer} wrongly.")
        found = advert_digest(advert)
        if found != roster.digests[roster.place[peer]]:
            raise Violation(Reason.BAD_ROSTER, f"Expected the advert of {peer} that the roster lists, found another.")
        if advert.weight_class != roster.classes[roster.place[peer]]:
            raise Violation(Reason.BAD_ROSTER, f"Expected the weight class that {peer} declared, found another.")
        declared = tuple(blocks[index].block_id for index in owned[peer])
        problem = advert_problem(
            advert, found, declared, state.participation.context, roster.spec.participants[peer - 1]
        )
        if problem is not None:
            raise Violation(Reason.BAD_ROSTER, f"Expected a valid advert of {peer}; {problem}.")
        peers[peer] = advert
    needed = {*roster.sharing_neighbours(me)}.union(*(roster.masking_neighbours(me, block) for block in owned[me]))
    if not needed <= peers.keys():
        raise Violation(Reason.BAD_ROSTER, f"Expected the adverts of all {len(needed)} neighbours, found fewer.")
    return peers
