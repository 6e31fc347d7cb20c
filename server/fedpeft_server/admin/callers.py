"""Who asks: by an access token in ``Authorization``, or by a browser's session; and whether this request is theirs.

Strangers are counted by address, and only after their token was looked at, so none can use up what a holder behind the
same address may ask for.
"""

import asyncio
from dataclasses import dataclass

from starlette.types import Scope

from fedpeft.entropy import os_entropy
from fedpeft_server.admin.access import Access, AccessToken
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.http import Refusal, header
from fedpeft_server.admin.sessions import COOKIE, Session, Sessions, cookie_of
from fedpeft_server.enrolment.audit_log import AuditEvent
from fedpeft_server.enrolment.refusals import RefusedStrangers
from fedpeft_server.origins import site_of
from fedpeft_server.rate_limit import RateLimit

__all__ = ["Caller", "Callers"]

CHECK = b"x-fedpeft-check"
_COOKIE = "Path=/; Secure; HttpOnly; SameSite=Strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks.

    Args:
        token: theirs.
        session: the browser's, where it is one.
        address: where they are.
    """

    token: AccessToken
    session: Session | None
    address: str

    @property
    def by(self) -> str:
        """For the audit log."""
        return f"{self.token.name} (token {self.token.token_id}) at {self.address}"


class Callers:
    """Of one port. One event loop.

    Args:
        site: whose tokens are good, and whose audit log hears of strangers.
    """

    def __init__(self, site: Administered) -> None:
        self._site, self._sessions = site, Sessions(site.clock, os_entropy)
        self._holders = RateLimit(per_s=20.0, burst=100, clock=site.clock)
        self._strangers = RateLimit(per_s=1.0, burst=20, clock=site.clock)
        self._refused = RefusedStrangers(site.audit, site.clock, where="administration")

    async def caller(self, scope: Scope) -> Caller:
        """Who makes this request.

        Raises:
            Refusal: nobody with a good token, or not from our page, or too often.
        """
        bearer, cookie = _bearer(header(scope, b"authorization")), cookie_of(header(scope, b"cookie"))
        session = self._sessions.find(cookie) if cookie and not bearer else None
        if session is not None:
            token = await asyncio.to_thread(self._access.good, session.token_id)
        else:
            token = await asyncio.to_thread(self._access.holder, bearer)
        caller = await self._known(scope, token, session)
        if session is not None:
            _expect_own_page(scope, session)
        return caller

    def is_nobody(self, scope: Scope) -> bool:
        """Whether a browser asks that has no session, which is no attempt at anything."""
        session = self._sessions.find(cookie_of(header(scope, b"cookie")))
        return session is None and header(scope, b"authorization") is None

    async def sign_in(self, scope: Scope, text: str) -> tuple[Caller, str]:
        """A session for who shows a good token, and the ``Set-Cookie`` header that begins it.

        Raises:
            Refusal: as ``caller``.
        """
        expect_same_origin(scope)
        caller = await self._known(scope, await asyncio.to_thread(self._access.holder, text), None)
        cookie, session = self._sessions.begin(caller.token.token_id)
        await asyncio.to_thread(
            self._site.audit.append, AuditEvent.SIGNED_IN, actor=caller.by, subject=caller.token.token_id
        )
        begun = Caller(token=caller.token, session=session, address=caller.address)
        return begun, f"{COOKIE}={cookie}; {_COOKIE}"

    def sign_out(self, scope: Scope) -> str:
        """Ends the request's session; the ``Set-Cookie`` header that removes its cookie."""
        self._sessions.end(cookie_of(header(scope, b"cookie")))
        return f"{COOKIE}=; {_COOKIE}; Max-Age=0"

    def is_good(self, scope: Scope, caller: Caller) -> bool:
        """Whether a stream of this caller may go on."""
        if caller.session is not None and self._sessions.find(cookie_of(header(scope, b"cookie"))) is None:
            return False
        return self._access.good(caller.token.token_id) is not None

    def close(self) -> None:
        """Writes down how many strangers there were."""
        self._refused.record(now=True)

    @property
    def _access(self) -> Access:
        return self._site.access

    async def _known(self, scope: Scope, token: AccessToken | None, session: Session | None) -> Caller:
        address = (scope.get("client") or ("unknown", 0))[0]
        if token is None:
            self._refused.count(address)
            await asyncio.to_thread(self._refused.record)
            if not self._strangers.allows(site_of(address)):
                raise Refusal(
                    429, "Too many requests without a valid access token; wait and try again.", {"retry-after": "5"}
                )
            raise Refusal(401, "Expected a valid access token.", {"www-authenticate": "Bearer"})
        if not self._holders.allows(token.token_id):
            raise Refusal(429, "Too many requests; wait and try again.", {"retry-after": "1"})
        return Caller(token=token, session=session, address=address)


def expect_same_origin(scope: Scope) -> None:
    """Returns unless a browser says that the request comes from elsewhere.

    Raises:
        Refusal: it does.
    """
    site = header(scope, b"sec-fetch-site")
    origin, host = header(scope, b"origin"), header(scope, b"host") or b""
    if (site is not None and site not in (b"same-origin", b"none")) or (origin not in (None, b"https://" + host)):
        raise Refusal(403, "Expected a request of this coordinator's own page.")


def _expect_own_page(scope: Scope, session: Session) -> None:
    """A browser's request comes from our page: by the browser's word and, where it changes something, by the check."""
    expect_same_origin(scope)
    shown = (header(scope, CHECK) or b"").decode("latin-1")
    if scope["method"] not in ("GET", "HEAD") and not Sessions.shows(session, shown):
        raise Refusal(403, "Expected the session's check with this request; load the page again.")


def _bearer(value: bytes | None) -> str:
    kind, _, text = (value or b"").partition(b" ")
    return text.decode("latin-1").strip() if kind.lower() == b"bearer" else ""
