"""The device's two key pairs: made here, 0600, never sent. Only requests and signatures leave.

P-256 for TLS and for Flower's node authentication, Ed25519 for the secure sum. Neither is ever used by two
enrolments: who leaves or is put out makes new ones, because the coordinator refuses retired keys.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedpeft.entropy import Entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, write_file
from fedpeft.secagg.primitives import KEY_SIZE
from fedpeft_client.home import DeviceHome

__all__ = ["certificate_fits", "ensure_keys", "forget_keys", "new_device_key", "public_key", "signing_request"]


def ensure_keys(home: DeviceHome, entropy: Entropy) -> None:
    """Makes the keys that are not there yet; those that are stay."""
    for folder in (home.path, home.keys, home.state):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.keys.chmod(0o700)
    if not home.identity_seed.exists():
        write_file(home.identity_seed, entropy(KEY_SIZE), mode=PRIVATE)
    if not home.device_key.exists():
        write_file(home.device_key, new_device_key(), mode=PRIVATE)


def forget_keys(home: DeviceHome) -> None:
    """Removes keys and certificate of an enrolment that ended."""
    for path in (home.device_key, home.device_certificate, home.identity_seed):
        path.unlink(missing_ok=True)


def new_device_key() -> bytes:
    """A P-256 private key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key_pem: bytes) -> bytes:
    """A PKCS #10 request, DER, for the key; the coordinator decides what the certificate says.

    Raises:
        IntegrityFailed: the key file was damaged.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedpeft device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_key(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def public_key(key_pem: bytes) -> bytes:
    """The public half, PEM SubjectPublicKeyInfo: what Flower and the coordinator know the device by."""
    return (
        _key(key_pem)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def certificate_fits(certificate: bytes, *, key_pem: bytes, authority: bytes) -> bool:
    """Whether a certificate is for this key and signed by this authority (all PEM)."""
    try:
        issued, issuer = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
        issued.verify_directly_issued_by(issuer)
    except Exception:  # whatever is wrong with bytes from the network: they do not fit
        return False
    return issued.public_key() == _key(key_pem).public_key()


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IntegrityFailed(
            "Expected the device's key as fedpeft made it, found another file; join again with a new token."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IntegrityFailed("Expected an elliptic-curve key, found another kind; join again with a new token.")
    return key
