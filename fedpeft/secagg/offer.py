"""The signed form of a round's terms, and its roster, which is sent only to devices that do not have it yet.

The signature covers ``RoundTerms``, and these the digest of the roster's one encoding: so a roster that a device kept
from an earlier round is the one that was signed, or it is not taken (docs/protocol.md, "Terms"; docs/adr/0042).
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from fedpeft.ids import ParticipantId
from fedpeft.privacy import NoiseTerms
from fedpeft.secagg.messages import RoundOffer
from fedpeft.secagg.primitives import KEY_SIZE, digest
from fedpeft.secagg.spec import MAX_PARTICIPANTS, Mode, Participant, RoundSpec, SummedBlock, check_spec
from fedpeft.wire import WireError, decode, encode, message

__all__ = [
    "RosterRows",
    "RoundTerms",
    "encode_spec",
    "one_copy",
    "open_checked",
    "open_spec",
    "open_terms",
    "roster_digest",
    "spec_of",
]

LONGEST_NAME = 65_535
"""Two bytes hold a name's length."""


@message(0x0301)
@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """A ``RoundSpec`` as it is signed: all of it, but of its roster the digest.

    Args:
        roster: digest of the encoded ``RosterRows``, 32 bytes.
        run_id, round_id, attempt, mode, blocks, min_cohort, corrupt_fraction, dropout_fraction: see ``RoundSpec``.
        stage_deadline_s, noise, work, history: likewise.
    """

    run_id: str
    round_id: int
    attempt: int
    mode: Mode
    roster: bytes
    blocks: tuple[SummedBlock, ...]
    min_cohort: int
    corrupt_fraction: float
    dropout_fraction: float
    stage_deadline_s: float
    noise: NoiseTerms | None
    work: bytes
    history: bytes


@message(0x030D)
@dataclass(frozen=True, slots=True, kw_only=True)
class RosterRows:
    """The participants of a round, 1..n in order, without what can be derived.

    Args:
        identities: Ed25519 public keys, 32 bytes each.
        lengths: of each device's name and then of its organisation's, in bytes of UTF-8; 2 bytes each, big-endian.
        names: these names, one after the other.
    """

    identities: bytes
    lengths: bytes
    names: bytes


def roster_digest(rows: bytes) -> bytes:
    """What the signed terms hold of an encoded ``RosterRows``."""
    return digest("participants", rows)


def encode_spec(spec: RoundSpec) -> tuple[bytes, bytes]:
    """The terms as they are signed, and the roster that they hold the digest of.

    Raises:
        WireError: ids other than 1..n in order, an identity of another length than 32 bytes, a name beyond 65,535.
    """
    people = spec.participants
    if any(peer.participant_id != place or len(peer.identity) != KEY_SIZE for place, peer in enumerate(people, 1)):
        raise WireError(f"Expected participants 1..{len(people)} in order with keys of {KEY_SIZE} bytes, found others.")
    names = [name.encode() for peer in people for name in (peer.device, peer.organisation)]
    if any(len(name) > LONGEST_NAME for name in names):
        raise WireError(f"Expected names of {LONGEST_NAME} bytes at most, found a longer one.")
    rows = encode(
        RosterRows(
            identities=b"".join(peer.identity for peer in people),
            lengths=b"".join(len(name).to_bytes(2, "big") for name in names),
            names=b"".join(names),
        )
    )
    return encode(RoundTerms(roster=roster_digest(rows), **_shared(spec))), rows


def spec_of(terms: RoundTerms, participants: tuple[Participant, ...] = ()) -> RoundSpec:
    """The terms with these participants; without, for whoever looks at the rest alone."""
    return RoundSpec(participants=participants, **_shared(terms))


def _shared(terms: RoundSpec | RoundTerms) -> dict[str, Any]:
    """What both forms of the terms hold alike."""
    return {field.name: getattr(terms, field.name) for field in fields(RoundTerms) if field.name != "roster"}


def _participants(rows: RosterRows) -> tuple[Participant, ...]:
    lengths = np.frombuffer(rows.lengths, ">u2").tolist() if len(rows.lengths) % 4 == 0 else []
    if len(rows.identities) != KEY_SIZE * (len(lengths) // 2) or sum(lengths) != len(rows.names):
        raise WireError("Expected a key and two lengths a participant, and names of these lengths; found others.")
    if len(lengths) > 2 * MAX_PARTICIPANTS:
        raise WireError(f"Expected at most {MAX_PARTICIPANTS} participants, found {len(lengths) // 2}.")
    ends = np.cumsum([0, *lengths]).tolist()
    try:
        names = [rows.names[start:end].decode() for start, end in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise WireError(f"Expected names in UTF-8: {error}.") from error
    return tuple(
        Participant(
            participant_id=ParticipantId(place),
            device=device,
            organisation=organisation,
            identity=rows.identities[KEY_SIZE * (place - 1) : KEY_SIZE * place],
        )
        for place, (device, organisation) in enumerate(zip(names[::2], names[1::2], strict=True), 1)
    )


@lru_cache(maxsize=8)
def open_terms(spec: bytes) -> RoundTerms:
    """What is signed in an offer, without its roster; decoded once per process. Raises WireError."""
    return decode(spec, RoundTerms)


def open_spec(offer: RoundOffer) -> RoundSpec:
    """The terms of an offer with its roster; decoded once per process.

    Raises:
        WireError: not their encoding, or another roster than the terms hold the digest of, or none.
    """
    return _opened(offer.spec, offer.roster)


@lru_cache(maxsize=8)
def _opened(spec: bytes, roster: bytes) -> RoundSpec:
    terms = open_terms(spec)
    if roster_digest(roster) != terms.roster:
        raise WireError("Expected the roster whose digest is in the signed terms, found another.")
    return spec_of(terms, _participants(decode(roster, RosterRows)))


def open_checked(offer: RoundOffer) -> RoundSpec:
    """``open_spec`` of terms that ``check_spec`` finds nothing against; checked once per process.

    Raises:
        WireError: see ``open_spec``.
        ConfigInvalid: see ``check_spec``.
    """
    return _checked(offer.spec, offer.roster)


@lru_cache(maxsize=8)
def _checked(spec: bytes, roster: bytes) -> RoundSpec:
    opened = _opened(spec, roster)
    check_spec(opened)
    return opened


@lru_cache(maxsize=8)
def one_copy(rows: bytes) -> bytes:
    """The same bytes, stored once for all devices of a process: a roster grows with its round."""
    return rows
