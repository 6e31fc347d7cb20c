"""The hashes that tie every message to one run, round, attempt, roster and survivor set (docs/protocol.md, "Contexts").

Each context hashes the one before it, so a key, ciphertext, signature or tag made under one of them is worthless under
any other: offer -> roster -> sharers (U2) -> survivors (U3).
"""

from typing import assert_never

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg.messages import (
    Advertise,
    ConsistRequest,
    MaskRequest,
    Request,
    RevealRequest,
    RoundOffer,
    ShareRequest,
)
from fedpeft.secagg.primitives import digest, hkdf, prf

__all__ = [
    "STAGE_CONSIST",
    "STAGE_MASK",
    "STAGE_REVEAL",
    "STAGE_SHARE",
    "advert_digest",
    "agreement_digest",
    "associated_data",
    "channel_secret",
    "commitment",
    "edge_secret",
    "encryption_key",
    "encryption_nonce",
    "fingerprint",
    "id_bytes",
    "masked_digest",
    "offer_context",
    "pair_stream",
    "roster_context",
    "self_stream",
    "sharers_context",
    "survivors_context",
]

STAGE_SHARE, STAGE_MASK, STAGE_CONSIST, STAGE_REVEAL = 1, 2, 3, 4
"""Nonces of the reply tags: one message a stage under one key."""


def id_bytes(participant: ParticipantId | int) -> bytes:
    """A participant id on the wire: 4 bytes, big-endian."""
    return participant.to_bytes(4, "big")


def offer_context(offer: RoundOffer) -> bytes:
    """Binds the exact bytes of the terms and the coordinator's key of this attempt."""
    return digest("offer", offer.spec, offer.coordinator_channel)


def advert_digest(advert: Advertise) -> bytes:
    """What the identity signs, and what the roster lists."""
    return digest(
        "advertise",
        advert.context,
        id_bytes(advert.participant_id),
        advert.device.encode(),
        advert.organisation.encode(),
        id_bytes(advert.weight_class),
        *(block.encode() for block in advert.blocks),
        b"keys",
        advert.channel_key,
        advert.mask_key,
        *advert.commitments,
    )


def roster_context(request: ShareRequest) -> bytes:
    """Binds who is in, with which keys and weights, owning which blocks."""
    return digest("roster", request.context, request.members, request.digests, request.classes, *request.owners)


def sharers_context(roster: bytes, sharers: bytes) -> bytes:
    """Binds U2."""
    return digest("sharers", roster, sharers)


def survivors_context(sharers: bytes, survivors: bytes) -> bytes:
    """Binds U3; a quorum of devices signs it."""
    return digest("survivors", sharers, survivors)


def masked_digest(sharers: bytes, member: ParticipantId) -> bytes:
    """What a device signs when it has masked its input for these sharers."""
    return digest("masked", sharers, id_bytes(member))


def agreement_digest(survivors: bytes, member: ParticipantId) -> bytes:
    """What a device signs when it agrees to these survivors."""
    return digest("agree", survivors, id_bytes(member))


def fingerprint(request: Request) -> bytes:
    """What makes two requests of a stage the same: everything that decides the reply."""
    match request:
        case RoundOffer():
            return offer_context(request)
        case ShareRequest():
            return roster_context(request)
        case MaskRequest():
            return digest("mask-request", request.context, request.sharers, *request.ciphertexts)
        case ConsistRequest() | RevealRequest():
            return survivors_context(request.context, request.survivors)
        case _:
            assert_never(request)


def commitment(offer: bytes, owner: ParticipantId, block: BlockId, seed: bytes) -> bytes:
    """What a device publishes about a self-mask seed; hides it because the seed is 32 random bytes."""
    return digest("commitment", offer, id_bytes(owner), block.encode(), seed)


def channel_secret(shared: bytes, roster: bytes) -> bytes:
    """The secret of a pair of sharing neighbours, from their X25519 agreement; the same on both ends."""
    return hkdf(shared, roster, "channel")


def encryption_key(channel: bytes) -> bytes:
    """Encrypts the pair's two ciphertexts."""
    return prf(channel, "box", b"")


def edge_secret(shared: bytes, roster: bytes, one_key: bytes, other_key: bytes) -> bytes:
    """The secret of a pair of devices, from their X25519 agreement; the same on both ends."""
    return hkdf(shared, roster, "edge", min(one_key, other_key), max(one_key, other_key))


def pair_stream(edge: bytes, block: BlockId) -> bytes:
    """The key of a pair's mask for one block."""
    return prf(edge, "pair", block.encode())


def self_stream(seed: bytes, roster: bytes, block: BlockId) -> bytes:
    """The key of a device's own mask for one block."""
    return prf(seed, "self", roster + block.encode())


def encryption_nonce(sender: ParticipantId) -> bytes:
    """Each direction of a pair's key encrypts one message."""
    return sender.to_bytes(12, "big")


def associated_data(roster: bytes, sender: ParticipantId, receiver: ParticipantId) -> bytes:
    """What a ciphertext is bound to: AES-GCM's associated data."""
    return roster + id_bytes(sender) + id_bytes(receiver)
