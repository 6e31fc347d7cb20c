"""Making a join token: the coordinator's address and its authority are in it, and it is audited."""

from fedpeft.clock import SystemClock
from fedpeft.deployment.token import JoinToken
from fedpeft.entropy import os_entropy
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome

__all__ = ["issue"]


def issue(
    home: CoordinatorHome,
    registry: Registry,
    *,
    ttl_s: float,
    uses: int,
    auto_approve: bool = False,
    organisation: str = "",
    actor: str = "operator",
) -> JoinToken:
    """A new token, audited.

    Raises:
        ConfigInvalid: a lifetime or number of uses out of range.
    """
    settings, clock = home.settings(), SystemClock()
    made = Tokens(registry, clock).create(
        host=settings.hosts[0],
        enrol_port=settings.enrol_port,
        ca_fingerprint=Authority.of_home(home, clock).fingerprint,
        ttl_s=ttl_s,
        uses=uses,
        auto_approve=auto_approve,
        organisation=organisation,
        entropy=os_entropy,
    )
    detail = {"uses": uses, "ttl_s": ttl_s, "approval": "automatic" if auto_approve else "by code"}
    AuditLog(home.audit, clock).append(AuditEvent.TOKEN_CREATED, actor=actor, subject=made.token_id, detail=detail)
    return made
