"""The federation's own certificate authority: one key that signs the server's certificate and the devices'.

P-256 and SHA-256 throughout: the authority 10 years, the server 825 days, a device 30 days. A device's certificate says
its name and organisation, and its Ed25519 identity as a URI, so that the three are bound by one signature. The request
is believed for its key alone, after its own signature was checked; everything else in the certificate is ours.
"""

import contextlib
import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpeft.clock import Clock
from fedpeft.deployment.ceremony import fingerprint
from fedpeft.deployment.client_hello import ENROL_NAME
from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.files import PRIVATE, SHARED, write_file
from fedpeft.home_schema import keep_schema
from fedpeft.secagg.primitives import KEY_SIZE
from fedpeft_server.home import SCHEMA, CoordinatorHome, Settings

__all__ = ["Authority", "certificate_expiry", "initialise", "node_key_of", "renew_server_certificate", "request_key"]

CA_DAYS, SERVER_DAYS, DEVICE_DAYS = 3650, 825, 30
_EARLY = timedelta(minutes=5)  # a device's clock may be behind ours
_CSR_MAX_BYTES = 4096
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def initialise(home: CoordinatorHome, settings: Settings, *, clock: Clock, entropy: Entropy) -> "Authority":
    """Makes a coordinator's home: authority, server certificate, round-signing identity, settings, in this order.

    Raises:
        ConfigInvalid: there is one already, or a host name cannot be in a certificate.
    """
    if home.exists or home.ca_key.exists():
        raise ConfigInvalid(
            f"Expected no coordinator in {home.path}, found one; its devices trust its keys: use it as it is, "
            "or name another --home."
        )
    names = _names(settings)
    for folder in (home.path, home.pki, home.bases, home.runs, home.logs):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _authority_certificate(key, clock.utc())
    authority = Authority(certificate, key, clock)
    write_file(home.identity_seed, entropy(KEY_SIZE), mode=PRIVATE)
    write_file(home.ca_certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=SHARED)
    write_file(home.ca_key, _pem(key), mode=PRIVATE)
    _write_server_certificate(home, authority, names)
    keep_schema(home.path, SCHEMA)
    home.write_settings(settings)
    return authority


def renew_server_certificate(home: CoordinatorHome, authority: "Authority", *, clock: Clock) -> bool:
    """Issues a new server certificate when less than a third of its life is left, or its names are not those of the
    settings any more; whether it did."""
    pem, names = home.server_certificate.read_bytes(), _names(home.settings())
    shown = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if list(shown.value) == names and certificate_expiry(pem) - clock.utc() > timedelta(days=SERVER_DAYS / 3):
        return False
    _write_server_certificate(home, authority, names)
    return True


def _names(settings: Settings) -> list[x509.GeneralName]:
    """In the server's certificate; how a device is told that there is one port."""
    return [_subject_name(host) for host in (*settings.hosts, *([ENROL_NAME] if settings.one_port else ()))]


class Authority:
    """The key that signs.

    Args:
        certificate: of the authority itself.
        key: its private key.
        clock: for the validity of what it signs.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self._certificate, self._key, self._clock = certificate, key, clock
        self.fingerprint = fingerprint(certificate.public_bytes(serialization.Encoding.DER))

    @classmethod
    def of_home(cls, home: CoordinatorHome, clock: Clock) -> "Authority":
        """The authority that ``initialise`` made.

        Raises:
            ConfigInvalid: there is none, or its files were damaged.
        """
        home.settings()
        try:
            certificate = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
            key = serialization.load_pem_private_key(home.ca_key.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("another kind of key")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigInvalid(
                f"Expected the authority's key and certificate in {home.pki}, found {reason}; restore the backup."
            ) from error
        return cls(certificate, key, clock)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign_device(self, csr: bytes, *, device: str, organisation: str, identity: bytes) -> tuple[str, bytes]:
        """A device's certificate.

        Args:
            csr: a request that ``request_key`` accepted.

        Returns:
            Its serial number in hex, and the certificate, PEM.
        """
        key = x509.load_der_x509_csr(csr).public_key()
        subject = [(NameOID.COMMON_NAME, device[:64]), (NameOID.ORGANIZATION_NAME, organisation[:64])]
        builder = (
            self._builder(key, subject, DEVICE_DAYS)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:fedpeft:identity:{identity.hex()}")]),
                critical=False,
            )
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return f"{certificate.serial_number:x}", certificate.public_bytes(serialization.Encoding.PEM)

    def sign_server(self, key: ec.EllipticCurvePublicKey, names: Sequence[x509.GeneralName]) -> x509.Certificate:
        """The certificate of the gateway and of the gRPC service."""
        builder = (
            self._builder(key, [(NameOID.COMMON_NAME, "fedpeft coordinator")], SERVER_DAYS)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def _builder(
        self, key: object, subject: Sequence[tuple[x509.ObjectIdentifier, str]], days: int
    ) -> x509.CertificateBuilder:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigInvalid("Expected an elliptic-curve key to certify, found another kind; make it with fedpeft.")
        now = self._clock.utc()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(kind, value) for kind, value in subject]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLY)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def request_key(csr: bytes) -> bytes | str:
    """The node key (PEM SubjectPublicKeyInfo) of a device's signing request, or what is wrong with it in words."""
    if len(csr) > _CSR_MAX_BYTES:
        return f"Expected a signing request of at most {_CSR_MAX_BYTES} bytes, found {len(csr)}."
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            return "Expected a P-256 key in the signing request, found another."
        if not request.is_signature_valid:
            return "Expected a signing request that its own key signed, found another signature."
    except (ValueError, TypeError, InvalidSignature) as error:
        return f"Expected a PKCS #10 signing request, found {error}."
    return _public_pem(key)


@lru_cache(maxsize=1024)
def node_key_of(certificate_pem: bytes) -> bytes:
    """The public key of a certificate, as ``request_key`` gives it."""
    key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    return _public_pem(key) if isinstance(key, ec.EllipticCurvePublicKey) else b""


@lru_cache(maxsize=1024)
def certificate_expiry(certificate_pem: bytes) -> datetime:
    """When a certificate stops being valid, UTC."""
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc


def _authority_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # A random part in the name keeps two federations' authorities apart in a device's trust store.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedpeft authority {os.urandom(4).hex()}")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _write_server_certificate(home: CoordinatorHome, authority: Authority, names: Sequence[x509.GeneralName]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.sign_server(key.public_key(), names)
    # The authority's certificate goes with it: a device that holds only the pin finds it in the handshake.
    chain = certificate.public_bytes(serialization.Encoding.PEM) + authority.pem
    write_file(home.server_key, _pem(key), mode=PRIVATE)
    write_file(home.server_certificate, chain, mode=SHARED)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _HOST.fullmatch(host):
        raise ConfigInvalid(f"Expected a host name or an address, found {host!r}; see --host.")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
