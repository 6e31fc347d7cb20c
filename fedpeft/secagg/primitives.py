"""Every call into `cryptography` that the secure sum makes, and nothing else (docs/protocol.md, "Primitives").

Ed25519 (RFC 8032), X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM ciphertexts and tags (SP 800-38D), and the
AES-256-CTR mask stream (SP 800-38A). All randomness comes in as arguments. Secret keys never show in a repr.
"""

import hashlib
import hmac as stdlib_hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedpeft.entropy import Entropy

__all__ = [
    "KEY_SIZE",
    "SIGNATURE_SIZE",
    "TAG_SIZE",
    "AgreementKey",
    "IdentityKey",
    "Secret",
    "authenticate",
    "digest",
    "equal",
    "expand",
    "fastest_backend",
    "hkdf",
    "is_authentic",
    "is_signed",
    "open_sealed",
    "prf",
    "seal",
    "stream",
]

KEY_SIZE = 32
TAG_SIZE = 16
SIGNATURE_SIZE = 64
DIGEST_SIZE = 32
NONCE_SIZE = 12

SIGNATURES_KEPT = 8192
"""More than the adverts, masks and agreements of a round of 2,000 devices in one process; 3 MiB."""

Backend = Literal["ctr", "gcm"]
Keystream = Callable[[memoryview, memoryview], int]
"""``update_into`` of a cipher: fed zeros, it writes keystream; the buffer needs 15 bytes to spare."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """Bytes that must not show: not in a log, not in a traceback, not in a repr."""

    value: bytes

    def __repr__(self) -> str:
        return f"<secret {len(self.value)} bytes>"


class IdentityKey:
    """An Ed25519 key pair: a device's or the coordinator's long-term identity, or one round's signing key."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy) -> "IdentityKey":
        """A new key from 32 bytes of ``entropy``."""
        return cls(entropy(KEY_SIZE))

    @classmethod
    def from_bytes(cls, seed: bytes) -> "IdentityKey":
        """The key that ``secret_bytes`` returned."""
        return cls(seed)

    def secret_bytes(self) -> bytes:
        """The 32-byte seed, for the file that enrolment writes (0600)."""
        return self._key.private_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """A 64-byte signature; deterministic."""
        return self._key.sign(text)

    def __repr__(self) -> str:
        return f"IdentityKey(public={self.public.hex()})"


def is_signed(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether ``signature`` over ``text`` is by the Ed25519 key ``public``; a malformed key or signature counts as no.

    Computed once per process for texts that are digests: in a simulation every virtual device is shown the same
    agreements. All three are public. What is kept is of fixed size, whatever a peer sends.
    """
    if len(public) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    return (_verified if len(text) == DIGEST_SIZE else _is_by)(public, signature, text)


def _is_by(public: bytes, signature: bytes, text: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


_verified = lru_cache(maxsize=SIGNATURES_KEPT)(_is_by)


def forget_signatures() -> None:
    """Drop what ``is_signed`` has kept: for measurements, since real devices share no process."""
    _verified.cache_clear()


class AgreementKey:
    """An X25519 key pair for one attempt."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes | None:
        """The 32-byte shared secret; None for a low-order or malformed point."""
        try:
            return self._key.exchange(_public_key(peer_public))
        except ValueError:
            return None

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"


@lru_cache(maxsize=2048)
def _public_key(text: bytes) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(text)


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 over the label and the parts, each preceded by its length: no two inputs read the same."""
    text = bytearray()
    for part in (f"fedpeft/1 {label}".encode(), *parts):
        text += len(part).to_bytes(8, "big")
        text += part
    return hashlib.sha256(text).digest()


def hkdf(secret: bytes, salt: bytes, label: str, *parts: bytes) -> bytes:
    """32 bytes of HKDF-SHA256; the info is the label and the parts, each preceded by its length."""
    info = b"".join(len(part).to_bytes(8, "big") + part for part in (f"fedpeft/1 {label}".encode(), *parts))
    # RFC 5869 for one block of output, from the standard library: five times faster than building an HKDF object.
    extracted = stdlib_hmac.digest(salt or bytes(KEY_SIZE), secret, "sha256")
    return stdlib_hmac.digest(extracted, info + b"\1", "sha256")


def prf(key: bytes, label: str, text: bytes) -> bytes:
    """HMAC-SHA256 of the label and the text under a uniformly random key: cheap per-block subkeys."""
    return stdlib_hmac.digest(key, f"fedpeft/1 {label}".encode() + b"\0" + text, "sha256")


def expand(key: bytes, size: int) -> bytes:
    """``size`` bytes of AES-256-CTR keystream from counter block 0, of a key that is used for nothing else."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """AES-256-GCM of ``plaintext``, 16 bytes longer; ``nonce`` (12 bytes) at most once per key."""
    return AESGCM(key).encrypt(nonce, plaintext, associated_data)


def open_sealed(key: bytes, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes | None:
    """What ``seal`` sealed; None if the ciphertext, the key, the nonce or the associated data is another."""
    if len(nonce) != NONCE_SIZE:
        return None  # cut off: a file, not what this device sealed
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated_data)
    except InvalidTag:
        return None


def authenticate(key: bytes, stage: int, parts: Sequence[bytes]) -> bytes:
    """A 16-byte AES-256-GMAC tag over the parts; at most one message per (key, stage).

    GMAC because hashing 4 MB with SHA-256 would cost the coordinator more than adding it up.
    """
    gmac = Cipher(algorithms.AES(key), modes.GCM(stage.to_bytes(12, "big"))).encryptor()
    for part in parts:
        gmac.authenticate_additional_data(len(part).to_bytes(8, "big"))
        gmac.authenticate_additional_data(part)
    gmac.finalize()
    return gmac.tag


def is_authentic(key: bytes, stage: int, parts: Sequence[bytes], tag: bytes) -> bool:
    """Whether ``authenticate`` gave this tag; compared in constant time."""
    return stdlib_hmac.compare_digest(authenticate(key, stage, parts), tag)


def equal(one: bytes, other: bytes) -> bool:
    """Constant-time comparison."""
    return stdlib_hmac.compare_digest(one, other)


def stream(key: bytes, segment: int, backend: Backend) -> Keystream:
    """The keystream of one segment: AES-256-CTR from counter block ``segment u96 || 2``.

    GCM's keystream under the 96-bit nonce ``segment`` starts at the very same counter block, so both back ends give
    the same bytes; which is faster depends on the processor.
    """
    return Cipher(algorithms.AES(key), _mode(segment, backend)).encryptor().update_into


@lru_cache(maxsize=64)
def _mode(segment: int, backend: Backend) -> modes.GCM | modes.CTR:
    nonce = segment.to_bytes(12, "big")
    return modes.GCM(nonce) if backend == "gcm" else modes.CTR(nonce + b"\0\0\0\2")


@cache
def fastest_backend() -> Backend:
    """Which back end is faster here; measured once, a few milliseconds."""
    size = 1 << 18
    zeros, out = memoryview(bytes(size)), memoryview(bytearray(size + 15))

    def cost(backend: Backend) -> float:
        best = float("inf")
        for _ in range(5):
            fill = stream(bytes(KEY_SIZE), 0, backend)
            start = time.perf_counter()
            fill(zeros, out)
            best = min(best, time.perf_counter() - start)
        return best

    return "gcm" if cost("gcm") < cost("ctr") else "ctr"
