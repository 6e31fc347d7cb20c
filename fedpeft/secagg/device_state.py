"""What a device remembers between two messages, one frozen dataclass per state, and what it derives from that
(docs/protocol.md, "Device").

    Advertised -> Shared -> Masked -> [Agreed] -> Closed        any violation -> Failed

Each state holds only what the next step needs, and the reply it gave last, so that a repeated request gets the very
same bytes. The states are wire messages for one purpose: the ledger seals them (``dump_state``). They never travel.
"""

from dataclasses import dataclass, replace

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg.messages import (
    Advertise,
    Agreement,
    EncryptedShares,
    MaskedInput,
    Reason,
    Reply,
    RevealedShares,
    RoundOffer,
    ShareRequest,
)
from fedpeft.secagg.offer import open_terms
from fedpeft.secagg.primitives import AgreementKey, Secret, hkdf
from fedpeft.secagg.roster import Roster, read_roster
from fedpeft.wire import decode, encode, message

__all__ = [
    "Advertised",
    "Agreed",
    "Closed",
    "DeviceState",
    "DeviceStep",
    "Failed",
    "HighWaterMark",
    "Masked",
    "Participation",
    "RoundKeys",
    "Shared",
    "Violation",
    "agree",
    "dump_state",
    "load_state",
    "mark_of",
    "reply_key",
    "roster_of",
    "secret_keys",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Participation:
    """A device's part in one attempt: nothing secret.

    Args:
        offer: the signed terms.
        context: of the offer.
        me: own participant id.
        owns: the blocks it uploads, in the spec's order.
        min_cohort: the stricter of the terms and the site's policy.
        min_colluders: the site's floor under the colluders that a cohort must hold against.
    """

    offer: RoundOffer
    context: bytes
    me: ParticipantId
    owns: tuple[BlockId, ...]
    min_cohort: int
    min_colluders: int = 0


@message(0x0380, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """Keys are out. ``root`` is the seed of every secret of this attempt."""

    participation: Participation
    root: Secret
    reply: Advertise


@message(0x0381, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Shares are out.

    Args:
        participation: see ``Participation``.
        root: the seed of every secret of this attempt.
        asked: context of the roster, which also identifies the request.
        roster: the request that named the members, without their keys.
        mask_keys: of each neighbour, verified, 32 bytes each, ascending.
        channels: one 32-byte secret for each sharing neighbour, ascending.
        reply: the ciphertexts.
    """

    participation: Participation
    root: Secret
    asked: bytes
    roster: ShareRequest
    mask_keys: bytes
    channels: Secret
    reply: EncryptedShares


@message(0x0382, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """The masked input is out; every secret of its own that masks it is gone.

    Args:
        participation: see ``Participation``.
        reply_key: authenticates the next reply.
        asked: identifies the request answered.
        roster: the request that named the members.
        sharers: U2, a bitmap.
        held_shares: of each sharing neighbour in U2, decrypted, ascending; empty where it could not be.
        reply: the masked vectors.
    """

    participation: Participation
    reply_key: Secret
    asked: bytes
    roster: ShareRequest
    sharers: bytes
    held_shares: tuple[Secret, ...]
    reply: MaskedInput


@message(0x0383, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """The survivor set (U3, in ``survivors``) is signed; ``asked`` is its context. No other will be accepted."""

    participation: Participation
    reply_key: Secret
    asked: bytes
    roster: ShareRequest
    sharers: bytes
    survivors: bytes
    held_shares: tuple[Secret, ...]
    reply: Agreement


@message(0x0384, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Shares are revealed; nothing secret is left. ``asked`` is the context of U3."""

    participation: Participation
    asked: bytes
    reply: RevealedShares


@message(0x0385, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The device will not go on with this attempt; nothing secret is left."""

    participation: Participation | None
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HighWaterMark:
    """How far a device has gone in a run; it only rises.

    Args:
        round_id: the latest round that it took part in.
        attempt: the latest attempt at it.
        agreed: whether no other attempt at the round may follow on this device: it has agreed to, or revealed for, a
            survivor set, or it has sent its masked input under noise. The others can open that without it, and the
            mean of several draws of noise over one input is the input.
        signed: the context of that set (C3); empty if there is none, or if it is not known any more.
        history: digest of every round before this one, as its terms have it; empty if it is not known.
    """

    round_id: int
    attempt: int
    agreed: bool
    signed: bytes = b""
    history: bytes = b""


DeviceState = Advertised | Shared | Masked | Agreed | Closed | Failed


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """What a step leads to: the state to keep (durably, first) and the reply to send (then)."""

    state: DeviceState
    reply: Reply


def dump_state(state: DeviceState) -> bytes:
    """The state as bytes, secrets included: for the sealed ledger only."""
    return encode(state)


def load_state(dumped: bytes) -> DeviceState:
    """What ``dump_state`` dumped.

    Raises:
        WireError: anything else.
    """
    state = decode(dumped, (Advertised, Shared, Masked, Agreed, Closed, Failed))
    if not isinstance(state, DeviceState):
        raise TypeError(f"Expected a device state, found {type(state).__name__}.")
    return state


def mark_of(state: DeviceState, before: HighWaterMark | None) -> HighWaterMark | None:
    """How far the device has gone, given how far it had gone before this state; never back.

    A state of an earlier round or attempt than the mark's leaves the mark as it is.
    """
    if state.participation is None:
        return before
    spec = open_terms(state.participation.offer.spec)
    signed = state.asked if isinstance(state, Agreed | Closed) else b""
    over = bool(signed) or (isinstance(state, Masked) and spec.noise is not None)
    here = HighWaterMark(round_id=spec.round_id, attempt=spec.attempt, agreed=over, signed=signed, history=spec.history)
    if before is None or (here.round_id, here.attempt) > (before.round_id, before.attempt):
        return here
    if (here.round_id, here.attempt) < (before.round_id, before.attempt):
        return before
    return replace(here, agreed=here.agreed or before.agreed, signed=here.signed or before.signed)


class Violation(Exception):
    """A broken rule, on its way to becoming a ``Refusal``; never leaves this package."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class RoundKeys:
    """A device's secrets of one attempt, all derived from its root."""

    channel: AgreementKey
    mask: AgreementKey
    mask_seed: Secret
    self_seeds: tuple[Secret, ...]


def secret_keys(root: Secret, participation: Participation) -> RoundKeys:
    """Derives them; the same root gives the same keys, so a restart loses nothing."""
    mask_seed = hkdf(root.value, participation.context, "mask-key")
    return RoundKeys(
        channel=AgreementKey(hkdf(root.value, participation.context, "channel-key")),
        mask=AgreementKey(mask_seed),
        mask_seed=Secret(mask_seed),
        self_seeds=tuple(
            Secret(hkdf(root.value, participation.context, "self-mask", block.encode())) for block in participation.owns
        ),
    )


def agree(key: AgreementKey, peer_public: bytes) -> bytes:
    """The shared secret with a peer; a low-order point is a violation."""
    shared = key.agree(peer_public)
    if shared is None:
        raise Violation(Reason.BAD_ROSTER, "Expected a valid X25519 key, found a low-order point.")
    return shared


def reply_key(channel: AgreementKey, participation: Participation) -> bytes:
    """The key with which this device authenticates its replies to the coordinator."""
    return hkdf(agree(channel, participation.offer.coordinator_channel), participation.context, "reply")


def roster_of(participation: Participation, request: ShareRequest) -> Roster:
    """The roster a request describes; anything wrong with it is a violation."""
    roster = read_roster(participation.offer, request)
    if isinstance(roster, str):
        raise Violation(Reason.BAD_ROSTER, roster)
    return roster
