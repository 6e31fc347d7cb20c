"""The hashes that tie every message to one run, round, attempt, roster and survivor set (docs/protocol.md, "Contexts").

Each context hashes the one before it, so a key, ciphertext, signature or tag made under one of them is worthless under
any other: offer -> roster -> sharers (U2) -> survivors (U3).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, assert_never

from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.secagg.messages import (
    Advertise,
    ConsistRequest,
    MaskRequest,
    Request,
    RevealRequest,
    RoundOffer,
    ShareRequest,
)
from fedpeft.secagg.primitives import DIGEST_SIZE, KEY_SIZE, SIGNATURE_SIZE, digest, hkdf, prf

__all__ = [
    "STAGE_CONSIST",
    "STAGE_MASK",
    "STAGE_REVEAL",
    "STAGE_SHARE",
    "NeighbourKeys",
    "advert_digest",
    "advert_tree",
    "agreement_digest",
    "associated_data",
    "channel_secret",
    "commitment",
    "edge_secret",
    "encryption_key",
    "encryption_nonce",
    "fingerprint",
    "id_bytes",
    "listed_digest",
    "masked_digest",
    "offer_context",
    "pair_stream",
    "path_in",
    "root_of",
    "roster_context",
    "self_stream",
    "sharers_context",
    "survivors_context",
]

STAGE_SHARE, STAGE_MASK, STAGE_CONSIST, STAGE_REVEAL = 1, 2, 3, 4
"""Nonces of the reply tags: one message per stage under one key."""


def id_bytes(participant: ParticipantId | int) -> bytes:
    """A participant id on the wire: 4 bytes, big-endian."""
    return participant.to_bytes(4, "big")


def offer_context(offer: RoundOffer) -> bytes:
    """Binds the exact bytes of the terms and the coordinator's key of this attempt."""
    return digest("offer", offer.spec, offer.coordinator_channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourKeys:
    """The part of an advert that neighbours cannot derive from the terms and the roster.

    Args:
        channel_key, mask_key: its X25519 public keys.
        commitments: the digest of all its commitments, which only the coordinator opens.
        signature: over the advert's digest.
    """

    SIZE = 3 * KEY_SIZE + SIGNATURE_SIZE

    channel_key: bytes
    mask_key: bytes
    commitments: bytes
    signature: bytes

    @classmethod
    def of(cls, advert: Advertise) -> Self:
        """Those of an advert."""
        return cls(
            channel_key=advert.channel_key,
            mask_key=advert.mask_key,
            commitments=digest("commitments", *advert.commitments),
            signature=advert.signature,
        )

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """From ``SIZE`` bytes."""
        channel, mask, commitments = (packed[KEY_SIZE * part : KEY_SIZE * (part + 1)] for part in range(3))
        return cls(channel_key=channel, mask_key=mask, commitments=commitments, signature=packed[3 * KEY_SIZE :])

    def pack(self) -> bytes:
        """As they travel, ``SIZE`` bytes."""
        return self.channel_key + self.mask_key + self.commitments + self.signature


def advert_digest(advert: Advertise) -> bytes:
    """What the identity signs, and what the roster's tree has as this member's leaf."""
    return listed_digest(
        advert.context,
        advert.participant_id,
        advert.device,
        advert.organisation,
        advert.weight_class,
        advert.blocks,
        NeighbourKeys.of(advert),
    )


def listed_digest(
    offer: bytes,
    member: ParticipantId,
    device: str,
    organisation: str,
    weight_class: SizeClass,
    blocks: Sequence[BlockId],
    keys: NeighbourKeys,
) -> bytes:
    """``advert_digest`` of the advert that has these keys, if it says the rest as the terms and the roster do."""
    return digest(
        "advertise",
        offer,
        id_bytes(member),
        device.encode(),
        organisation.encode(),
        id_bytes(weight_class),
        *(block.encode() for block in blocks),
        b"keys",
        keys.channel_key,
        keys.mask_key,
        keys.commitments,
    )


def advert_tree(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The levels of the tree over the adverts' digests, from the leaves to the root (docs/protocol.md, "Contexts").

    The last of an odd level goes up as it is.
    """
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [digest("node", *pair) for pair in zip(below[::2], below[1::2], strict=False)]
        levels.append(above if len(below) % 2 == 0 else [*above, below[-1]])
    return levels


def path_in(levels: Sequence[Sequence[bytes]], places: Collection[int]) -> bytes:
    """What somebody who knows the leaves at these places lacks to compute the root: level by level, ascending."""
    path, here = [], set(places)
    for level in levels[:-1]:
        path += [level[place ^ 1] for place in sorted(here) if place ^ 1 not in here and place ^ 1 < len(level)]
        here = {place // 2 for place in here}
    return b"".join(path)


def root_of(known: Mapping[int, bytes], leaves: int, path: bytes) -> bytes | None:
    """The root of the tree that has these leaves at these places; None if the path is not exactly what is missing.

    Args:
        known: place -> leaf; at least one.
        leaves: how many the tree has.
        path: see ``path_in``.
    """
    level, size, at = dict(known), leaves, 0
    while size > 1:
        above: dict[int, bytes] = {}
        for place in sorted(level):
            beside = place ^ 1
            if beside >= size:
                above[place // 2] = level[place]
            elif beside not in level:
                other = path[at : at + DIGEST_SIZE]
                at += DIGEST_SIZE
                above[place // 2] = digest(
                    "node", *((level[place], other) if place < beside else (other, level[place]))
                )
            elif place < beside:
                above[place // 2] = digest("node", level[place], level[beside])
        level, size = above, (size + 1) // 2
    return level[0] if at == len(path) else None


def roster_context(request: ShareRequest) -> bytes:
    """Binds who is in, with which keys and weights, owning which blocks."""
    return digest("roster", request.context, request.members, request.root, request.classes, *request.owners)


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
