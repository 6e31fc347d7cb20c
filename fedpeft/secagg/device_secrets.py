"""What the device's stages share: its secrets of one attempt, and how a broken rule is raised."""

from dataclasses import dataclass

from fedpeft.secagg.device_state import Participation
from fedpeft.secagg.messages import Reason, ShareRequest
from fedpeft.secagg.primitives import AgreementKey, Secret, hkdf
from fedpeft.secagg.roster import Roster, read_roster

__all__ = ["RoundKeys", "Violation", "agree", "reply_key", "roster_of", "secret_keys"]


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
