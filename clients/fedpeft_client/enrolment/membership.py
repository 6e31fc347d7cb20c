"""What an enrolled device does about its enrolment: renew the certificate, rotate the key, leave.

A rotation is two files, each replaced atomically, with a state in between that ``finish_rotation`` completes: run it
before the certificate is used. Whoever changes keys takes a turn: a running `client run` renews, too.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from fedpeft.clock import Clock
from fedpeft.deployment.messages import Refused
from fedpeft.directory_lock import short_turn
from fedpeft.errors import IntegrityFailed, NotEnrolled
from fedpeft.files import PRIVATE, write_file
from fedpeft_client.connection.grpc_client import Link
from fedpeft_client.enrolment.keys import certificate_fits, forget_keys, new_device_key, signing_request
from fedpeft_client.home import DeviceHome, Enrolment

__all__ = ["certificate_ends", "finish_rotation", "leave", "mark_ended", "renew_if_due", "rotate_key"]

_DEVICE_DAYS = 30


def renew_if_due(home: DeviceHome, clock: Clock) -> bool:
    """Renews the certificate when two thirds of its 30 days are gone; whether it did.

    Raises:
        NotEnrolled: the coordinator does not want this device any more.
        Unreachable: it did not answer; the present certificate is still good.
    """
    with short_turn(home.keys):
        if certificate_ends(home) - clock.utc() > timedelta(days=_DEVICE_DAYS / 3):
            return False
        key = home.device_key.read_bytes()
        write_file(home.device_certificate, _renewed(home, key), mode=PRIVATE)
    return True


def rotate_key(home: DeviceHome) -> None:
    """Replaces the device key by a new one that the old one vouches for; the old one ends with the first use. A
    running `client run` goes on with the new one by itself.

    Raises:
        NotEnrolled, Unreachable: as ``renew_if_due``; then nothing changed.
    """
    with short_turn(home.keys):
        _finish(home)
        next_key, next_certificate = _next(home.device_key), _next(home.device_certificate)
        if not next_key.exists():
            write_file(next_key, new_device_key(), mode=PRIVATE)
        write_file(next_certificate, _renewed(home, next_key.read_bytes()), mode=PRIVATE)
        _finish(home)
    with Link.of_home(home) as link:
        link.greet()


def finish_rotation(home: DeviceHome) -> None:
    """Completes a rotation that was interrupted after the new certificate had come: key first, certificate second."""
    with short_turn(home.keys):
        _finish(home)


def _finish(home: DeviceHome) -> None:
    next_key, next_certificate = _next(home.device_key), _next(home.device_certificate)
    if next_certificate.exists():
        if next_key.exists():
            next_key.replace(home.device_key)
        next_certificate.replace(home.device_certificate)


def leave(home: DeviceHome, reason: str) -> Enrolment:
    """Tells the coordinator, then forgets the keys; the site's rules and the bases stay.

    Raises:
        Unreachable: the coordinator did not hear it; nothing changed here.
    """
    enrolment = home.enrolment()
    try:
        with Link.of_home(home) as link:
            link.leave(reason)
    except NotEnrolled:
        pass  # it was put out already: the same to us
    home.write_enrolment(replace(enrolment, left=f"it left: {reason}" if reason else "it left"))
    forget_keys(home)
    return enrolment


def mark_ended(home: DeviceHome, why: str) -> None:
    """Notes that the coordinator put this device out, so that the next start says so without asking."""
    home.write_enrolment(replace(home.last_enrolment(), left=why))


def certificate_ends(home: DeviceHome) -> datetime:
    """When the present certificate runs out."""
    return x509.load_pem_x509_certificate(home.device_certificate.read_bytes()).not_valid_after_utc


def _renewed(home: DeviceHome, key: bytes) -> bytes:
    enrolment = home.enrolment()
    with Link.of_home(home) as link:
        answer = link.renew(signing_request(key))
    if isinstance(answer, Refused):
        raise NotEnrolled(f"Expected a new certificate from {enrolment.host}, found {answer.detail}.")
    if not certificate_fits(answer.certificate, key_pem=key, authority=home.ca_certificate.read_bytes()):
        raise IntegrityFailed("Expected a certificate for this device's key, found another; the old one was kept.")
    return answer.certificate


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
