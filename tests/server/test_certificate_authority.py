"""The certificate authority: what it signs, what it refuses, and when it renews."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.deployment.client_hello import ENROL_NAME
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.testing.clock import FakeClock
from fedpeft_server.enrolment.certificate_authority import (
    Authority,
    certificate_expiry,
    initialise,
    renew_server_certificate,
    request_key,
)
from fedpeft_server.home import CoordinatorHome, Settings


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    home = CoordinatorHome(tmp_path / "fed")
    initialise(home, Settings(hosts=("fed.example", "10.0.0.1")), clock=FakeClock(), entropy=os_entropy)
    return home


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    built = x509.CertificateSigningRequestBuilder().subject_name(name)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_device_certificate_says_what_we_say_and_not_what_the_request_asks_for(home: CoordinatorHome):
    authority = Authority.of_home(home, FakeClock())
    serial, pem = authority.sign_device(
        request(ec.generate_private_key(ec.SECP256R1())), device="ward", organisation="clinic", identity=b"i" * 32
    )
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "O=clinic,CN=ward"
    assert f"{certificate.serial_number:x}" == serial
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"urn:fedpeft:identity:{(b'i' * 32).hex()}"]
    assert certificate_expiry(pem) == FakeClock().utc() + timedelta(days=30)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem))


def test_the_server_certificate_has_every_host_and_carries_its_authority(home: CoordinatorHome):
    server, authority = x509.load_pem_x509_certificates(home.server_certificate.read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["fed.example", "10.0.0.1"]
    server.verify_directly_issued_by(authority)
    assert authority.public_bytes(serialization.Encoding.PEM) == home.ca_certificate.read_bytes()


@pytest.mark.parametrize("wrong", ["curve", "signature", "length", "noise"])
def test_requests_that_are_not_a_devices_are_refused_in_words(wrong: str):
    good = request(ec.generate_private_key(ec.SECP256R1()))
    assert isinstance(request_key(good), bytes)
    bad = {
        "curve": request(ec.generate_private_key(ec.SECP384R1())),
        "signature": good[:-8] + bytes(8),
        "length": good + bytes(5000),
        "noise": b"\x30\x03abc",
    }[wrong]
    assert str(request_key(bad)).startswith("Expected")


def test_the_server_certificate_is_renewed_in_its_last_third_and_the_authority_stays(home: CoordinatorHome):
    clock = FakeClock()
    authority, before = Authority.of_home(home, clock), home.server_certificate.read_bytes()
    assert not renew_server_certificate(home, authority, clock=clock)
    clock.advance(600 * 86400)
    assert renew_server_certificate(home, authority, clock=clock)
    after = home.server_certificate.read_bytes()
    assert certificate_expiry(after) > certificate_expiry(before) > datetime(2028, 1, 1, tzinfo=UTC)
    assert Authority.of_home(home, clock).fingerprint == authority.fingerprint


def test_a_certificate_without_the_settings_names_is_issued_anew_once(home: CoordinatorHome):
    """Of a coordinator that has got another name, or one port for all."""
    authority, settings = Authority.of_home(home, FakeClock()), home.settings()
    ports = dict.fromkeys(("fleet_port", "service_port", "enrol_port"), 443)
    home.write_settings(replace(settings, hosts=("new.example", "::1"), **ports))
    assert renew_server_certificate(home, authority, clock=FakeClock())
    shown = x509.load_pem_x509_certificate(home.server_certificate.read_bytes())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example", ENROL_NAME]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    assert not renew_server_certificate(home, authority, clock=FakeClock())


def test_a_damaged_authority_is_said(home: CoordinatorHome):
    home.ca_key.write_bytes(b"nothing")
    with pytest.raises(ConfigInvalid, match="restore the backup"):
        Authority.of_home(home, FakeClock())
