"""What both sides of an enrolment compute: the proof of the secret, the identity's statement, the short code."""

import hashlib

from fedpeft.deployment.messages import Application
from fedpeft.secagg.primitives import Secret, digest, equal, hkdf, is_signed, prf

__all__ = ["CLOCK_TOLERANCE_S", "fingerprint", "is_proven", "proof", "proof_key", "short_code", "statement", "vouches"]

CLOCK_TOLERANCE_S = 4.0
"""Flower refuses a node whose clock is 5 s ahead; a second is left for the network."""

_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""No 0/O, 1/I/L, U: read out over the telephone."""
_CODE_LENGTH = 8
"""30^8, 39 bits: another key with the same code costs an attacker days, and the token's secret."""


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of an authority's certificate: the pin."""
    return hashlib.sha256(certificate_der).digest()


def proof_key(secret: Secret, token_id: str) -> bytes:
    """The key that proves a token's secret; the coordinator keeps this and forgets the secret."""
    return hkdf(secret.value, b"", "join", token_id.encode())


def proof(key: bytes, application: bytes) -> bytes:
    """HMAC-SHA256 over the encoded application."""
    return prf(key, "enrol", application)


def is_proven(key: bytes, application: bytes, claimed: bytes) -> bool:
    """Whether ``claimed`` is the proof; compared in constant time."""
    return equal(proof(key, application), claimed)


def statement(application: Application) -> bytes:
    """What the Ed25519 identity signs: that it belongs to this name, key and coordinator."""
    return digest(
        "enrol identity",
        application.ca_fingerprint,
        application.token_id.encode(),
        application.device.encode(),
        application.organisation.encode(),
        application.csr,
        application.identity,
    )


def vouches(application: Application) -> bool:
    """Whether the identity in the application signed it."""
    return is_signed(application.identity, application.identity_signature, statement(application))


def short_code(ca_fingerprint: bytes, node_key: bytes, identity: bytes) -> str:
    """What the device shows and the operator types, e.g. ``4F2K-9R3M``: a hash of both sides' keys.

    Example:
        >>> short_code(bytes(32), b"a", b"b") == short_code(bytes(32), b"a", b"b")
        True
    """
    number = int.from_bytes(digest("enrol code", ca_fingerprint, node_key, identity), "big")
    letters = ""
    for _ in range(_CODE_LENGTH):
        number, place = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[place]
    return f"{letters[:4]}-{letters[4:]}"
