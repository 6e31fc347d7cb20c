"""Who may administer from afar: access tokens with a role, that end; hashed at rest.

A token is ``fa1.ID.SECRET.PIN``. The secret is 32 random bytes, so it needs no slow hash: the registry keeps its
SHA-256, and whoever reads a copy of the registry has no token. The pin is the SHA-256 of the coordinator's authority: a
client that holds the token knows whom it may show it to.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from enum import IntEnum

from fedpeft.clock import Clock
from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid
from fedpeft_server.enrolment.registry import Registry

__all__ = ["Access", "AccessToken", "Role", "pin_of"]

MOST_DAYS = 365
_TEXT = re.compile(r"fa1\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_COLUMNS = "token_id, role, name, expires_utc, revoked"


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    VIEWER = 1
    SUBMITTER = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As people write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """One token, without its secret.

    Args:
        token_id: its public name.
        role: what it is for.
        name: whose it is; what its holder does is audited under it.
        expires_utc: seconds since 1970.
        revoked: whether it was taken back.
    """

    token_id: str
    role: Role
    name: str
    expires_utc: float
    revoked: bool


def pin_of(text: str) -> bytes:
    """SHA-256 of the authority that a token's coordinator has.

    Raises:
        ConfigInvalid: the text is no access token. The message does not quote it.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ConfigInvalid(
            "Expected an access token as `fedpeft coordinator admin-token create` prints it, found "
            f"{len(text)} other characters; copy the whole line."
        )
    return urlsafe_b64decode(found[3] + "=")


class Access:
    """The access tokens of a registry. Thread-safe; several processes may have it open.

    Guarantees:
        The secret of a token is in the value that ``create`` returns and nowhere else.

    Args:
        registry: where they are kept.
        clock: for their end.
    """

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock

    def create(
        self, role: Role, name: str, *, ttl_s: float, ca_fingerprint: bytes, entropy: Entropy
    ) -> tuple[str, AccessToken]:
        """A new token: its text, and its record.

        Raises:
            ConfigInvalid: a name or a lifetime that cannot be.
        """
        if not _NAME.fullmatch(name) or not 60 <= ttl_s <= MOST_DAYS * 86400:
            raise ConfigInvalid(
                f"Expected a name of letters, digits and ._@- and a lifetime of 60 s to {MOST_DAYS} days, found "
                f"{name[:64]!r} and {ttl_s:.0f} s."
            )
        token_id, secret = entropy(8).hex(), _text_of(entropy(32))
        expires = self._clock.utc().timestamp() + ttl_s
        with self._registry.change() as db:
            row = (token_id, _hashed(secret), role.name, name, expires, 0)
            db.execute("INSERT INTO access_tokens VALUES (?, ?, ?, ?, ?, ?)", row)
        record = AccessToken(token_id=token_id, role=role, name=name, expires_utc=expires, revoked=False)
        return f"fa1.{token_id}.{secret}.{_text_of(ca_fingerprint)}", record

    def ls(self) -> tuple[AccessToken, ...]:
        """Every token, the one that ends first first."""
        rows = self._registry.rows(f"SELECT {_COLUMNS} FROM access_tokens ORDER BY expires_utc, token_id")  # noqa: S608
        return tuple(_record(*row) for row in rows)

    def revoke(self, token_id: str) -> None:
        """Takes a token back, from its next request on.

        Raises:
            ConfigInvalid: there is none of that name.
        """
        with self._registry.change() as db:
            if db.execute("UPDATE access_tokens SET revoked = 1 WHERE token_id = ?", (token_id,)).rowcount == 0:
                raise ConfigInvalid(f"Expected the id of an access token, found {token_id!r}; see `admin-token ls`.")

    def holder(self, text: str) -> AccessToken | None:
        """The token of this text; None unless it is good now. An unknown id takes as long as a wrong secret."""
        found = _TEXT.fullmatch(text)
        token_id, secret = (found[1], found[2]) if found else ("", "")
        rows = self._registry.rows("SELECT secret_sha256 FROM access_tokens WHERE token_id = ?", token_id)
        kept = rows[0][0] if rows else bytes(32)
        is_right = hmac.compare_digest(kept if isinstance(kept, bytes) else b"", _hashed(secret))
        return self.good(token_id) if rows and is_right else None

    def good(self, token_id: str) -> AccessToken | None:
        """The token of that id; None unless it is good now. For those who have shown its secret before."""
        rows = self._registry.rows(f"SELECT {_COLUMNS} FROM access_tokens WHERE token_id = ?", token_id)  # noqa: S608
        record = _record(*rows[0]) if rows else None
        if record is None or record.revoked or self._clock.utc().timestamp() >= record.expires_utc:
            return None
        return record


def _hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _text_of(secret: bytes) -> str:
    return urlsafe_b64encode(secret).decode("ascii").rstrip("=")


def _record(token_id: object, role: object, name: object, expires: object, revoked: object) -> AccessToken:
    return AccessToken(
        token_id=str(token_id),
        role=Role[str(role)],
        name=str(name),
        expires_utc=float(str(expires)),
        revoked=bool(revoked),
    )
