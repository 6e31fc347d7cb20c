"""The join token: one line of text that an operator gives to a device's owner.

``fp1.<base64url>``: where the coordinator is, the SHA-256 of its authority's certificate (the pin), and a secret that
proves that the operator asked this device. The secret is used as a key and never sent. The last four bytes are a
checksum, so that a token that was cut or mistyped is told from one that is no longer valid.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from fedpeft.errors import NotEnrolled
from fedpeft.secagg.primitives import Secret
from fedpeft.wire import WireError, decode, encode, message

__all__ = ["SECRET_BYTES", "JoinToken"]

PREFIX = "fp1."
SECRET_BYTES = 16
_CHECKSUM = 4
_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,253}")


@message(0x0401)
@dataclass(frozen=True, slots=True)
class _Body:
    host: str
    enrol_port: int
    ca_fingerprint: bytes
    token_id: str
    secret: bytes
    expires_utc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """What a join token says.

    Args:
        host: the coordinator's name, as in its certificate.
        enrol_port: where it enrols.
        ca_fingerprint: SHA-256 of its authority's certificate (DER), 32 bytes.
        token_id: the operator's name for it.
        secret: 16 random bytes.
        expires_utc: Unix time after which the coordinator refuses it; for people, the coordinator's clock decides.
    """

    host: str
    enrol_port: int
    ca_fingerprint: bytes
    token_id: str
    secret: Secret
    expires_utc: int

    def to_text(self) -> str:
        """The token as text: a secret."""
        body = encode(
            _Body(self.host, self.enrol_port, self.ca_fingerprint, self.token_id, self.secret.value, self.expires_utc)
        )
        sealed = body + hashlib.sha256(body).digest()[:_CHECKSUM]
        return PREFIX + base64.urlsafe_b64encode(sealed).decode("ascii").rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> "JoinToken":
        """The inverse of ``to_text``; white space from line breaks is forgiven.

        Raises:
            NotEnrolled: not a token, or not the whole of one. The message does not quote it.
        """
        word = "".join(text.split())
        try:
            if not word.startswith(PREFIX):
                raise ValueError(f"another beginning than {PREFIX}")
            encoded = word[len(PREFIX) :]
            sealed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            payload, checksum = sealed[:-_CHECKSUM], sealed[-_CHECKSUM:]
            if hashlib.sha256(payload).digest()[:_CHECKSUM] != checksum:
                raise ValueError("a part missing or mistyped")
            body = decode(payload, _Body)
            if (
                not _HOST.fullmatch(body.host)
                or not 0 < body.enrol_port < 65536
                or len(body.ca_fingerprint) != 32
                or len(body.secret) != SECRET_BYTES
            ):
                raise ValueError("a field out of range")
        except (ValueError, binascii.Error, WireError) as error:
            raise NotEnrolled(
                f"Expected a join token as `fedpeft coordinator token create` prints it, found {len(word)} characters "
                f"with {error}; copy the whole line."
            ) from error
        return cls(
            host=body.host,
            enrol_port=body.enrol_port,
            ca_fingerprint=body.ca_fingerprint,
            token_id=body.token_id,
            secret=Secret(body.secret),
            expires_utc=body.expires_utc,
        )
