"""Join tokens on the coordinator's side: made, listed, revoked, and spent: one use per admitted device.

Kept is a key derived from the secret, not the secret: enough to check a proof. Whoever can read the registry can
also make tokens; it is 0600 like the authority's key beside it.
"""

from dataclasses import dataclass

from fedpeft.clock import Clock
from fedpeft.deployment.ceremony import is_proven, proof_key
from fedpeft.deployment.messages import RefusalReason
from fedpeft.deployment.token import SECRET_BYTES, JoinToken
from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid
from fedpeft.secagg.primitives import Secret
from fedpeft.terminal import printable
from fedpeft_server.enrolment.registry import Registry

__all__ = ["TokenRecord", "Tokens"]

_MAX_USES = 100_000
_UNKNOWN = bytes(32)  # a proof is computed for unknown tokens too, so that the answer takes as long


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token without its secret.

    Args:
        token_id: its name.
        expires_utc: Unix time.
        uses: how many devices it admits.
        used: how many it has admitted.
        auto_approve: whether they need no approval.
        organisation: whose devices these are; empty: as the devices say.
        revoked: whether the operator took it back.
    """

    token_id: str
    expires_utc: float
    uses: int
    used: int
    auto_approve: bool
    organisation: str
    revoked: bool


class Tokens:
    """The tokens in a registry."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock

    def create(
        self,
        *,
        host: str,
        enrol_port: int,
        ca_fingerprint: bytes,
        ttl_s: float,
        uses: int,
        auto_approve: bool,
        organisation: str,
        entropy: Entropy,
    ) -> JoinToken:
        """A new token; its secret is in the returned value and nowhere else.

        Raises:
            ConfigInvalid: a lifetime or number of uses out of range, or an organisation that no certificate names.
        """
        if not 60 <= ttl_s <= 365 * 86400 or not 1 <= uses <= _MAX_USES:
            raise ConfigInvalid(
                f"Expected a lifetime of 60 s to 365 days and 1 to {_MAX_USES} uses, found {ttl_s:.0f} s and {uses}."
            )
        if len(organisation) > 63 or printable(organisation) != organisation:
            raise ConfigInvalid(f"Expected an organisation's name, 63 characters at most, found {organisation!r:.80}.")
        expires = self._clock.utc().timestamp() + ttl_s
        token = JoinToken(
            host=host,
            enrol_port=enrol_port,
            ca_fingerprint=ca_fingerprint,
            token_id=entropy(4).hex(),
            secret=Secret(entropy(SECRET_BYTES)),
            expires_utc=int(expires),
        )
        key = proof_key(token.secret, token.token_id)
        with self._registry.change() as db:
            row = (token.token_id, key, expires, uses, int(auto_approve), organisation, 0)
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return token

    def ls(self) -> tuple[TokenRecord, ...]:
        """Every token, the one that expires first first."""
        return self._records("1 = 1 ORDER BY expires_utc")

    def revoke(self, token_id: str) -> None:
        """Admits nobody else by this token.

        Raises:
            ConfigInvalid: there is none of that name.
        """
        with self._registry.change() as db:
            if db.execute("UPDATE tokens SET revoked = 1 WHERE token_id = ?", (token_id,)).rowcount == 0:
                raise ConfigInvalid(f"Expected the name of a token, found {token_id!r}; see `token ls`.")

    def proven(self, token_id: str, application: bytes, proof: bytes) -> TokenRecord | None:
        """The token, if the proof is by somebody who has its secret; says nothing about whether it is still good."""
        found = self._registry.rows("SELECT mac_key FROM tokens WHERE token_id = ?", token_id)
        key = found[0][0] if found else _UNKNOWN
        if not isinstance(key, bytes) or not is_proven(key, application, proof) or not found:
            return None
        return self._records("token_id = ?", token_id)[0]

    def find(self, token_id: str) -> TokenRecord | None:
        """The token of that name; None when there is none."""
        return next(iter(self._records("token_id = ?", token_id)), None)

    def reread(self, token: TokenRecord) -> TokenRecord:
        """The token as it is now; inside ``Registry.change`` nobody else can spend it."""
        return self._records("token_id = ?", token.token_id)[0]

    def objection(self, token: TokenRecord) -> tuple[RefusalReason, str] | None:
        """Why the token admits no further device; None if it does. For those who proved its secret only."""
        if token.revoked:
            return RefusalReason.TOKEN_REVOKED, "the operator revoked this token; ask for another"
        if self._clock.utc().timestamp() > token.expires_utc:
            return RefusalReason.EXPIRED, "this token has expired by the coordinator's clock; ask for another"
        if token.used >= token.uses:
            return RefusalReason.USED_UP, f"this token was for {token.uses} device(s) and is used up; ask for another"
        return None

    def spend(self, token: TokenRecord, node_key: bytes) -> None:
        """Counts one use; inside ``Registry.change`` together with the device that it admits."""
        with self._registry.change() as db:
            db.execute("INSERT OR IGNORE INTO token_uses VALUES (?, ?)", (token.token_id, node_key))

    def _records(self, where: str, *values: object) -> tuple[TokenRecord, ...]:
        # Safe: ``where`` is written in this module; what comes from outside is bound.
        query = (
            "SELECT token_id, expires_utc, uses, (SELECT COUNT(*) FROM token_uses u WHERE u.token_id = t.token_id), "  # noqa: S608
            f"auto_approve, organisation, revoked FROM tokens t WHERE {where}"
        )
        return tuple(
            TokenRecord(
                token_id=str(row[0]),
                expires_utc=float(str(row[1])),
                uses=int(str(row[2])),
                used=int(str(row[3])),
                auto_approve=bool(row[4]),
                organisation=str(row[5]),
                revoked=bool(row[6]),
            )
            for row in self._registry.rows(query, *values)
        )
