"""Whom a browser speaks for: sessions in memory, each begun by showing an access token once.

The browser holds a cookie that no script can read (HttpOnly) and that no other site's page can have sent
(SameSite=Strict); whoever changes something shows the session's second secret too, which only a page of ours is told. A
session is its token's: it ends with it, after ``LONGEST_S``, when its holder signs out, and with the process.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass

from fedpeft.clock import Clock
from fedpeft.entropy import Entropy

__all__ = ["COOKIE", "Session", "Sessions", "cookie_of"]

COOKIE = "__Host-fedpeft"
"""The prefix makes browsers hold it to this host, over TLS, for all of its paths."""
LONGEST_S = 8 * 3600.0
MOST_OF_A_TOKEN, MOST = 8, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One browser.

    Args:
        token_id: of the access token that it showed.
        check: what a request that changes something must show.
        ends_s: on the monotonic clock.
    """

    token_id: str
    check: str
    ends_s: float


class Sessions:
    """Of one coordinator. Not thread-safe: one event loop.

    Args:
        clock: monotonic.
        entropy: for secrets.
    """

    def __init__(self, clock: Clock, entropy: Entropy) -> None:
        self._clock, self._entropy = clock, entropy
        self._by_hash: dict[bytes, Session] = {}

    def begin(self, token_id: str) -> tuple[str, Session]:
        """A new session of a token: the cookie's value, and what is kept. The oldest one too many ends."""
        now = self._clock.monotonic_s()
        self._by_hash = {key: one for key, one in self._by_hash.items() if one.ends_s > now}
        own = [key for key, one in self._by_hash.items() if one.token_id == token_id]
        for key in own[: max(0, len(own) - MOST_OF_A_TOKEN + 1)]:
            del self._by_hash[key]
        while len(self._by_hash) >= MOST:
            del self._by_hash[next(iter(self._by_hash))]
        cookie, check = (urlsafe_b64encode(self._entropy(32)).decode().rstrip("=") for _ in range(2))
        session = Session(token_id=token_id, check=check, ends_s=now + LONGEST_S)
        self._by_hash[_hashed(cookie)] = session
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it has ended. Looked up by its hash: timing tells nothing of a secret."""
        found = self._by_hash.get(_hashed(cookie))
        return found if found is not None and found.ends_s > self._clock.monotonic_s() else None

    def end(self, cookie: str) -> None:
        """Its holder signs out."""
        self._by_hash.pop(_hashed(cookie), None)

    @staticmethod
    def shows(session: Session, check: str) -> bool:
        """Whether this is the session's second secret."""
        return hmac.compare_digest(session.check.encode(), check.encode())


def cookie_of(value: bytes | None) -> str:
    """Our cookie in a ``Cookie`` header; empty if it is not there.

    Not by ``http.cookies``: its time grows with the square of a hostile header, seconds for what 16 KiB can hold.
    """
    for pair in (value or b"").decode("latin-1").split(";"):
        name, _, found = pair.strip().partition("=")
        if name == COOKIE:
            return found
    return ""


def _hashed(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
