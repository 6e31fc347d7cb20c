"""The messages of the secure sum, in the order in which they travel (docs/protocol.md, "Messages").

Requests go from the coordinator to one device, replies come back; each stage is one request and one reply.
Bitmaps have one bit per member of the round, most significant bit first; ``ShareRequest.members``, which says who these
are, has one a participant of the terms. Lists that carry no ids are in ascending order of participant id, or of the
blocks in the ``RoundSpec``.
"""

from dataclasses import dataclass
from enum import Enum

from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.wire import message

__all__ = [
    "REPLIES",
    "REQUESTS",
    "Advertise",
    "Agreement",
    "ConsistRequest",
    "EncryptedShares",
    "MaskRequest",
    "MaskedInput",
    "Reason",
    "Refusal",
    "Reply",
    "Request",
    "RevealRequest",
    "RevealedShares",
    "RoundOffer",
    "ShareRequest",
]


class Reason(Enum):
    """Why a device refused, a device was rejected, or a round was aborted."""

    BAD_AGREEMENT = "bad-agreement"  # too few members signed the survivor set, or a survivor masked for other sharers
    BAD_INPUT = "bad-input"  # wrong length or dtype, NaN, inf, a count that is not whole
    BAD_LENGTH = "bad-length"  # a vector, ciphertext or bitmap of another length than the terms say
    BAD_ROSTER = "bad-roster"  # a peer's keys are not signed, or the list contradicts itself or us
    BAD_SHARE = "bad-share"  # a share that is not on the dealer's polynomial
    BAD_SIGNATURE = "bad-signature"
    BAD_TERMS = "bad-terms"  # the RoundSpec contradicts itself
    BLOCK_NOT_DECLARED = "block-not-declared"
    COHORT_TOO_SMALL = "cohort-too-small"
    DROPPED_OUT = "dropped-out"  # no reply before the stage was closed
    EQUIVOCATION = "equivocation"  # a second, different request (or reply) for a stage already answered
    LATE = "late"
    MALFORMED = "malformed"
    MISSING_ROSTER = "missing-roster"  # terms came without their roster, and this device does not have it
    NOT_ON_ROSTER = "not-on-roster"
    OUT_OF_ORDER = "out-of-order"
    OUT_OF_RANGE = "out-of-range"  # an opened sum that no honest inputs make: a device is suspected, none can be named
    POLICY = "policy"  # weaker than the site allows
    REPLAYED = "replayed"  # an attempt that this device has already left behind
    ROUND_CLOSED = "round-closed"
    SECRET_LOST = "secret-lost"  # noqa: S105 — a reason, not a secret: too few good shares to rebuild one
    TOO_FEW_DEVICES = "too-few-devices"
    WRONG_ROUND = "wrong-round"  # the message belongs to another round, roster or survivor set


@message(0x0302)
@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOffer:
    """FIT: the signed terms.

    Args:
        spec: encoded ``RoundTerms``; signed and hashed as these bytes.
        roster: the encoded ``RosterRows`` whose digest the terms hold; empty: the receiver is thought to have them.
        coordinator_channel: the coordinator's X25519 public key of this attempt; devices authenticate replies with it.
        signature: Ed25519 by the coordinator's enrolment key over the context.
    """

    spec: bytes
    roster: bytes
    coordinator_channel: bytes
    signature: bytes


@message(0x0303)
@dataclass(frozen=True, slots=True, kw_only=True)
class Advertise:
    """Reply to ``RoundOffer``: which blocks, and fresh keys, signed by the device's identity.

    Args:
        context: SHA-256 of the offer; 32 bytes.
        participant_id: the sender.
        device: its enrolled name; MUST be that of its row on the roster.
        organisation: who is responsible for it, likewise.
        weight_class: 0..63; the device's public size is 2 to this power, as far as the round weighs by size.
        blocks: the blocks it will upload, in the spec's order.
        channel_key: X25519 public key for the ciphertexts.
        mask_key: X25519 public key for the pairwise masks.
        commitments: one 32-byte hash of the self-mask seed of each of ``blocks``.
        signature: Ed25519 by the enrolled identity over all of the above.
    """

    context: bytes
    participant_id: ParticipantId
    device: str
    organisation: str
    weight_class: SizeClass
    blocks: tuple[BlockId, ...]
    channel_key: bytes
    mask_key: bytes
    commitments: tuple[bytes, ...]
    signature: bytes


@message(0x0304)
@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRequest:
    """SHARE: who is in, and the neighbours' keys.

    Args:
        context: of the offer.
        members: those of the terms that advertised (U1), a bitmap.
        root: of the tree over the digests of the members' adverts, 32 bytes.
        classes: each member's weight class, one byte each.
        owners: for each block of the spec, the bitmap of the members that own it.
        neighbours: of each of the receiver's neighbours in both graphs, ascending, 160 bytes (``NeighbourKeys``).
        path: what is missing between their digests, the receiver's own one and the root, 32 bytes each.
    """

    context: bytes
    members: bytes
    root: bytes
    classes: bytes
    owners: tuple[bytes, ...]
    neighbours: bytes
    path: bytes


@message(0x0305)
@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedShares:
    """Reply to ``ShareRequest``: one ciphertext for each sharing neighbour, ascending, all of one size.

    A ciphertext is AES-256-GCM of shares of 33 bytes: of the mask key's seed, and of each own block's self-mask seed.
    """

    context: bytes
    ciphertexts: bytes
    tag: bytes


@message(0x0306)
@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRequest:
    """MASK: who shared, and the ciphertexts for the receiver.

    Args:
        context: of the roster.
        sharers: bitmap of the members that shared (U2).
        ciphertexts: from each sharing neighbour in U2, ascending.
    """

    context: bytes
    sharers: bytes
    ciphertexts: tuple[bytes, ...]


@message(0x0307)
@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedInput:
    """Reply to ``MaskRequest``: the masked vector of each own block.

    Args:
        context: of U2.
        unopened: neighbours whose ciphertext did not open or held no field elements.
        vectors: ring words, little-endian, one byte string for each own block.
        signature: by the identity: this device has masked for these sharers and no others.
        tag: authenticates all of it to the coordinator.
    """

    context: bytes
    unopened: tuple[ParticipantId, ...]
    vectors: tuple[bytes, ...]
    signature: bytes
    tag: bytes


@message(0x0308)
@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistRequest:
    """CONSIST (full mode): whose masked input arrived (U3, a bitmap). ``context`` is that of U2."""

    context: bytes
    survivors: bytes


@message(0x0309)
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Reply to ``ConsistRequest``: this device has seen these survivors, and will accept no others.

    Args:
        context: of U3.
        signature: by the identity, over the context: shown to every member.
        tag: authenticates all of it to the coordinator.
    """

    context: bytes
    signature: bytes
    tag: bytes


@message(0x030A)
@dataclass(frozen=True, slots=True, kw_only=True)
class RevealRequest:
    """REVEAL: U3 again, and in full mode the proof that everybody saw the same.

    Args:
        context: of U2.
        survivors: U3, a bitmap.
        signers: bitmap of members in U3 whose agreements follow: a quorum with the receiver; the same for all. Empty
            in fast mode, like the next two.
        signatures: their ``Agreement.signature``, ascending, 64 bytes each.
        masked: ``MaskedInput.signature`` of each sharing neighbour of the receiver in U3 that is no signer, ascending,
            64 bytes each.
    """

    context: bytes
    survivors: bytes
    signers: bytes
    signatures: bytes
    masked: bytes


@message(0x030B)
@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedShares:
    """Reply to ``RevealRequest``: of each neighbour in U2, one kind of secret only.

    Args:
        context: of U3.
        opened: bitmap over the spec's blocks: those whose cohort is large enough for this device.
        shares: 33 bytes each, neighbours ascending; in U3: the self-mask shares of its opened blocks; not in U3:
            the mask key's. All ones where the ciphertext had not opened.
        tag: authenticates all of it to the coordinator.
    """

    context: bytes
    opened: bytes
    shares: bytes
    tag: bytes


@message(0x030C)
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Any stage's reply of a device that will not go on: an outcome, with its reason."""

    reason: Reason
    detail: str


Request = RoundOffer | ShareRequest | MaskRequest | ConsistRequest | RevealRequest
Reply = Advertise | EncryptedShares | MaskedInput | Agreement | RevealedShares | Refusal

REQUESTS: tuple[type, ...] = (RoundOffer, ShareRequest, MaskRequest, ConsistRequest, RevealRequest)
"""For ``wire.decode`` on a device."""

REPLIES: tuple[type, ...] = (Advertise, EncryptedShares, MaskedInput, Agreement, RevealedShares, Refusal)
"""For ``wire.decode`` on the coordinator."""
