"""Joining: the device's side of enrolment (docs/deployment.md).

The order of joining: check the pin, then the clock, then make keys, then apply; whatever came back is checked before
it is written, and device.json is written last. Interrupted anywhere, the same command goes on.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from fedpeft import __version__
from fedpeft.clock import Clock
from fedpeft.deployment.ceremony import CLOCK_TOLERANCE_S, proof, proof_key, short_code, statement
from fedpeft.deployment.client_hello import ENROL_NAME
from fedpeft.deployment.messages import Accepted, Application, EnrolRequest, Refused, Waiting
from fedpeft.deployment.token import JoinToken
from fedpeft.deployment.window import outside_window
from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid, IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft.files import PRIVATE, write_file
from fedpeft.secagg import FileLedger
from fedpeft.wire import encode
from fedpeft_client.connection.grpc_client import Link, Unreachable, pinned_authority
from fedpeft_client.connection.proxy import proxy_of
from fedpeft_client.enrolment.keys import certificate_fits, ensure_keys, forget_keys, public_key, signing_request
from fedpeft_client.home import DeviceHome, Enrolment

__all__ = ["JoinOptions", "check_clock", "join", "pending"]

_ASK_S = 2.0
"""Between two questions whether the operator has approved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What a device wants to be; kept beside the token while it waits.

    Args:
        token: the token's text.
        device: its name.
        organisation: who is responsible; empty: as the token says.
        bases: where base artifacts are kept; empty: in the home.
        profile: its hardware, ``DeviceProfile.to_json``.
    """

    token: str
    device: str
    organisation: str
    bases: str
    profile: str


def join(
    home: DeviceHome,
    options: JoinOptions,
    *,
    clock: Clock,
    entropy: Entropy,
    wait_s: float,
    pause: Callable[[float], object],
    on_waiting: Callable[[str], None],
) -> Enrolment | None:
    """Enrols this device, or goes on where it was interrupted.

    Args:
        wait_s: how long to wait for the operator's approval.
        pause: sleeps.
        on_waiting: told the short code once, when approval is needed.

    Returns:
        What the coordinator said; None when the operator has not approved within ``wait_s``.

    Raises:
        NotEnrolled: refused, with the coordinator's reason; or the token is malformed.
        IntegrityFailed: another authority than the token's answered.
        ResourceMissing: this machine's clock is off.
        Unreachable: nobody answered.
    """
    token = JoinToken.from_text(options.token)
    if home.is_enrolled:
        before = home.last_enrolment()
        if not before.left:
            raise ConfigInvalid(
                f"Expected a device that is not enrolled, found {before.device} enrolled at {before.host}; "
                "`fedpeft client leave` first, or name another --home."
            )
        forget_keys(home)
        home.enrolment_file.unlink()
    proxy = proxy_of(home, token.host)
    pinned = pinned_authority(token, proxy=proxy)
    name = ENROL_NAME if ENROL_NAME in pinned.names else ""
    with Link(_target(token), authority=pinned.authority, proxy=proxy, name=name) as link:
        if outside := outside_window(__version__, link.greet().version):
            raise ConfigInvalid(f"Expected a coordinator of this device's series, found that {outside}; update one.")
        check_clock(link, clock)
        ensure_keys(home, entropy)
        write_file(home.token, json.dumps(_to_json(options)).encode(), mode=PRIVATE)
        request = _request(home, options, token)

        def show(code: str) -> None:
            _show(code, home, token, on_waiting)

        answer = _wait(link, request, clock=clock, wait_s=wait_s, pause=pause, on_waiting=show)
    if answer is None:
        return None
    if isinstance(answer, Refused):
        home.token.unlink(missing_ok=True)
        raise NotEnrolled(
            f"Expected {_target(token)} to enrol this device, found {answer.reason.value}: {answer.detail}."
        )
    return _install(home, options, token, pinned.authority, answer)


def pending(home: DeviceHome) -> JoinOptions | None:
    """What this device asked for and has not been approved for yet."""
    try:
        content = json.loads(home.token.read_text(encoding="utf-8"))
        return JoinOptions(**content)
    except OSError:
        return None
    except (ValueError, TypeError) as error:
        raise IntegrityFailed(f"Expected {home.token} as `join` wrote it, found {error}; join again.") from error


def check_clock(link: Link, clock: Clock) -> float:
    """This machine's clock minus the coordinator's, in seconds, give or take half a round trip.

    Raises:
        ResourceMissing: more than 4 s: Flower's node authentication would refuse every message.
    """
    link.greet()  # the first call pays for the connection; the second measures
    before = clock.utc().timestamp()
    theirs = link.greet().utc_s
    after = clock.utc().timestamp()
    offset = (before + after) / 2 - theirs
    if abs(offset) > CLOCK_TOLERANCE_S + (after - before) / 2:
        direction = "ahead of" if offset > 0 else "behind"
        raise ResourceMissing(
            f"Expected this machine's clock within {CLOCK_TOLERANCE_S:.0f} s of the coordinator's, found it "
            f"{abs(offset):.1f} s {direction} it; set it by NTP (`timedatectl set-ntp true`) and join again."
        )
    return offset


def _wait(
    link: Link,
    request: EnrolRequest,
    *,
    clock: Clock,
    wait_s: float,
    pause: Callable[[float], object],
    on_waiting: Callable[[str], None],
) -> Accepted | Refused | None:
    """Asks until the operator has decided; None when that took longer than ``wait_s``."""
    answer = link.enrol(request)
    if isinstance(answer, Waiting):
        on_waiting(answer.code)
    ends = clock.monotonic_s() + wait_s
    while isinstance(answer, Waiting):
        if clock.monotonic_s() >= ends:
            return None
        pause(_ASK_S)
        with suppress(Unreachable):  # the coordinator restarts, or is busy: the application is kept
            answer = link.enrol(request)
    return answer


def _show(code: str, home: DeviceHome, token: JoinToken, on_waiting: Callable[[str], None]) -> None:
    """Shows the short code, from this device's own keys: one that the coordinator made up would prove nothing."""
    own = short_code(token.ca_fingerprint, public_key(home.device_key.read_bytes()), home.identity().public)
    if code != own:
        raise IntegrityFailed(
            f"Expected the code {own} of this device's own keys, found {code}; somebody may be in "
            "between: do not continue."
        )
    on_waiting(own)


def _install(home: DeviceHome, options: JoinOptions, token: JoinToken, authority: bytes, answer: Accepted) -> Enrolment:
    if answer.device != options.device or len(answer.coordinator_key) != 32:
        raise IntegrityFailed(
            f"Expected an enrolment of {options.device}, found one of {answer.device!r}; nothing kept."
        )
    if not certificate_fits(answer.certificate, key_pem=home.device_key.read_bytes(), authority=authority):
        raise IntegrityFailed("Expected a certificate for this device's key, found another; nothing was kept.")
    write_file(home.ca_certificate, authority)
    write_file(home.device_certificate, answer.certificate, mode=PRIVATE)
    enrolment = Enrolment(
        device=answer.device,
        organisation=answer.organisation,
        host=token.host,
        fleet_port=answer.fleet_port,
        service_port=answer.service_port,
        coordinator_key=answer.coordinator_key.hex(),
        ca_fingerprint=token.ca_fingerprint.hex(),
        bases=options.bases,
    )
    FileLedger.create(home.ledger, home.identity())  # with a new key: it has signed for nothing yet
    home.write_enrolment(enrolment)
    home.token.unlink(missing_ok=True)
    return enrolment


def _request(home: DeviceHome, options: JoinOptions, token: JoinToken) -> EnrolRequest:
    identity = home.identity()
    unsigned = Application(
        token_id=token.token_id,
        ca_fingerprint=token.ca_fingerprint,
        device=options.device,
        organisation=options.organisation,
        csr=signing_request(home.device_key.read_bytes()),
        identity=identity.public,
        identity_signature=b"",
        profile=options.profile,
    )
    application = encode(replace(unsigned, identity_signature=identity.sign(statement(unsigned))))
    return EnrolRequest(application=application, proof=proof(proof_key(token.secret, token.token_id), application))


def _target(token: JoinToken) -> str:
    host = f"[{token.host}]" if ":" in token.host else token.host
    return f"{host}:{token.enrol_port}"


def _to_json(options: JoinOptions) -> dict[str, str]:
    return {name: getattr(options, name) for name in ("token", "device", "organisation", "bases", "profile")}
