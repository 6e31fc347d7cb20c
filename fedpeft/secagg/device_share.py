"""The device's SHARE stage: check the roster, deal the shares (docs/protocol.md, "SHARE")."""

from dataclasses import replace

from fedpeft.ids import ParticipantId
from fedpeft.secagg.device_state import Advertised, Shared, Violation, agree, reply_key, roster_of, secret_keys
from fedpeft.secagg.messages import EncryptedShares, Reason, ShareRequest
from fedpeft.secagg.policy import colluders_objection
from fedpeft.secagg.primitives import Secret, authenticate, expand, is_signed, prf, seal
from fedpeft.secagg.roster import Roster
from fedpeft.secagg.shamir import COEFFICIENT_BYTES, split
from fedpeft.secagg.transcript import (
    STAGE_SHARE,
    NeighbourKeys,
    advert_digest,
    associated_data,
    channel_secret,
    encryption_key,
    encryption_nonce,
    id_bytes,
    root_of,
)

__all__ = ["share"]


def share(state: Advertised, request: ShareRequest) -> Shared:
    """Checks the roster, then seals a share of every secret for every sharing neighbour."""
    participation, roster = state.participation, roster_of(state.participation, request)
    # The coordinator says who is there; of fewer members fewer are taken to collude, and nothing was dealt yet.
    objection = colluders_objection(roster.spec, len(roster.members), participation.min_colluders)
    if objection is not None:
        raise Violation(Reason.POLICY, objection)
    peers = _checked_neighbours(state, request, roster)
    own, holders = secret_keys(state.root, participation), roster.sharing_neighbours(participation.me)
    secrets = [own.mask_seed.value, *(seed.value for seed in own.self_seeds)]
    size = COEFFICIENT_BYTES * (roster.degree.threshold - 1)
    coefficients = [
        expand(prf(state.root.value, "coefficients", roster.context + id_bytes(index)), size)
        for index in range(len(secrets))
    ]
    shares = split(secrets, roster.degree.threshold, holders, coefficients)
    ciphertexts, channels = [], []
    for index, holder in enumerate(holders):
        channel = channel_secret(agree(own.channel, peers[holder].channel_key), roster.context)
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
    tag = authenticate(reply_key(own.channel, participation), STAGE_SHARE, [roster.context, sealed])
    return Shared(
        participation=participation,
        root=state.root,
        asked=roster.context,
        roster=replace(request, neighbours=b"", path=b""),
        mask_keys=b"".join(keys.mask_key for keys in peers.values()),
        channels=Secret(b"".join(channels)),
        reply=EncryptedShares(context=roster.context, ciphertexts=sealed, tag=tag),
    )


def _checked_neighbours(state: Advertised, request: ShareRequest, roster: Roster) -> dict[ParticipantId, NeighbourKeys]:
    """The neighbours' keys, ascending: each signed, and all of them, with our own as we advertised it, in one tree."""
    me, blocks = state.participation.me, roster.spec.blocks
    if me not in roster.place:
        raise Violation(Reason.BAD_ROSTER, "Expected our own advert on the roster, found none.")
    if roster.classes[roster.place[me]] != state.reply.weight_class:
        raise Violation(Reason.BAD_ROSTER, "Expected the weight class that we declared, found another.")
    if tuple(blocks[index].block_id for index in roster.owned_by(me)) != state.participation.owns:
        raise Violation(Reason.BAD_ROSTER, "Expected us to own what we declared, found other blocks.")
    around, size = roster.neighbours_of(me), NeighbourKeys.SIZE
    if len(request.neighbours) != size * len(around):
        raise Violation(Reason.BAD_ROSTER, f"Expected the keys of all {len(around)} neighbours, found another number.")
    peers = {
        peer: NeighbourKeys.unpack(request.neighbours[size * place : size * (place + 1)])
        for place, peer in enumerate(around)
    }
    digests = {peer: roster.listed(peer, keys) for peer, keys in peers.items()}
    leaves = {roster.place[peer]: digest for peer, digest in {**digests, me: advert_digest(state.reply)}.items()}
    if root_of(leaves, len(roster.members), request.path) != roster.root:
        raise Violation(Reason.BAD_ROSTER, "Expected our own advert and our neighbours' on the roster, found others.")
    for peer, keys in peers.items():
        if not is_signed(roster.spec.participants[peer - 1].identity, keys.signature, digests[peer]):
            raise Violation(Reason.BAD_ROSTER, f"Expected an advert signed by the identity of {peer}, found another.")
    return peers
