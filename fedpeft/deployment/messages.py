"""The messages of the gRPC service, one frozen dataclass each (wire codec, tags 0x0401..0x047F).

Base manifests and chunks travel as the bytes that they are: their digests are their names.
"""

from dataclasses import dataclass
from enum import Enum

from fedpeft.wire import message

__all__ = [
    "Accepted",
    "AdapterEntry",
    "AdapterFile",
    "AdapterFileRequest",
    "AdapterList",
    "AdapterListRequest",
    "Application",
    "BaseRequest",
    "ChunksRequest",
    "EnrolRequest",
    "GreetRequest",
    "Greeting",
    "LeaveRequest",
    "RefusalReason",
    "Refused",
    "RenewRequest",
    "Renewed",
    "Waiting",
    "Wake",
    "WakeRequest",
]


@message(0x0402)
@dataclass(frozen=True, slots=True, kw_only=True)
class GreetRequest:
    """Before enrolment: who is there, and what time is it?

    Args:
        version: of the asking fedpeft.
    """

    version: str


@message(0x0403)
@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """The answer to a greeting.

    Args:
        utc_s: Unix time by the coordinator's clock; Flower refuses devices whose clock differs by 5 s.
        version: of the coordinator's fedpeft.
    """

    utc_s: float
    version: str


@message(0x0404)
@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a device asks to be enrolled as; the proof of the token's secret is over exactly these bytes.

    Args:
        token_id: of the join token.
        ca_fingerprint: the pin that the device checked: an application is good at one coordinator only.
        device: the name it wants.
        organisation: who is responsible for it; empty: as the token says, or its own name.
        csr: PKCS #10, DER, of its P-256 key; signed by that key.
        identity: its Ed25519 public key, 32 bytes.
        identity_signature: by that key, over ``statement(application)``.
        profile: its hardware, ``DeviceProfile.to_json``.
    """

    token_id: str
    ca_fingerprint: bytes
    device: str
    organisation: str
    csr: bytes
    identity: bytes
    identity_signature: bytes
    profile: str


@message(0x0405)
@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """An application with the proof of the secret; asking again with the same keys gives the same answer.

    Args:
        application: an encoded ``Application``.
        proof: HMAC-SHA256 over it under a key derived from the token's secret, 32 bytes.
    """

    application: bytes
    proof: bytes


@message(0x0406)
@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Enrolled.

    Args:
        device, organisation: as the coordinator has them.
        certificate: PEM, of the key in the signing request.
        fleet_port, service_port: where to go with it.
        coordinator_key: the coordinator's Ed25519 public key, 32 bytes.
    """

    device: str
    organisation: str
    certificate: bytes
    fleet_port: int
    service_port: int
    coordinator_key: bytes


@message(0x0407)
@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The operator has to approve; ask again.

    Args:
        code: what operator and device owner compare.
    """

    code: str


class RefusalReason(Enum):
    """Why a device is not enrolled."""

    NOT_ACCEPTED = "not-accepted"
    """Unknown token, or a wrong proof: not told apart, so that nobody learns which tokens exist."""
    EXPIRED = "expired"
    USED_UP = "used-up"
    TOKEN_REVOKED = "token-revoked"  # noqa: S105  not a password
    NAME_TAKEN = "name-taken"
    KEY_RETIRED = "key-retired"
    MALFORMED = "malformed"
    DENIED = "denied"
    REVOKED = "revoked"
    LEFT = "left"


@message(0x0408)
@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Not enrolled, and why."""

    reason: RefusalReason
    detail: str


@message(0x0409)
@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """A new certificate for the same device, asked for with the present one.

    Args:
        csr: of the same key, or of a new one: then Flower's node key changes with it.
    """

    csr: bytes


@message(0x040A)
@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """The new certificate, PEM; the old one is good until the new one is used."""

    certificate: bytes


@message(0x040B)
@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRequest:
    """The device does not want to take part any more; answered by ``Refused`` with ``LEFT``."""

    reason: str


@message(0x040C)
@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRequest:
    """The manifest of a base, please; answered by its bytes.

    Args:
        digest: ``sha256:<hex>``.
    """

    digest: str


@message(0x040D)
@dataclass(frozen=True, slots=True, kw_only=True)
class ChunksRequest:
    """A file of a base from an offset on; answered by a stream of its bytes.

    Args:
        digest: of the base.
        file: a name in its manifest.
        offset: bytes that the device has and has checked, or will check.
    """

    digest: str
    file: str
    offset: int


@message(0x040E)
@dataclass(frozen=True, slots=True, kw_only=True)
class WakeRequest:
    """Tell me when a message waits; answered by a stream of ``Wake``, one at once."""


@message(0x040F)
@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """A message may wait: poll now.

    Args:
        count: how many wake-ups this stream has carried; for logs.
    """

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """One file of an adapter.

    Args:
        name: a plain name.
        size_bytes, sha256: of its content; the digest in hex.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEntry:
    """A run's adapter as it can be fetched now.

    Args:
        run_id: of which run.
        slot: ``final`` once the run has ended, before that ``best`` or ``latest``.
        rounds: how many are committed; the evaluation after the last is none.
        base: digest of the base artifact that it belongs on.
        files: all of them.
    """

    run_id: str
    slot: str
    rounds: int
    base: str
    files: tuple[AdapterFile, ...]


@message(0x0410)
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterListRequest:
    """Which adapters may this device have? Answered by ``AdapterList``."""


@message(0x0411)
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterList:
    """The adapters of the runs that this device may have, newest run first."""

    entries: tuple[AdapterEntry, ...]


@message(0x0412)
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFileRequest:
    """A listed file from an offset on; answered by a stream of its bytes.

    Args:
        run_id, file, sha256: as listed.
        offset: in bytes.
    """

    run_id: str
    file: str
    sha256: str
    offset: int
