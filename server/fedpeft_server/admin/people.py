"""Operations on who may take part and who may administer: devices, join tokens, access tokens, the audit log."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from fedpeft.entropy import os_entropy
from fedpeft_server.admin.access import Role
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.asked import Asked, NotThere
from fedpeft_server.admin.views import access_view, audit_view, device_view, join_token_view
from fedpeft_server.enrolment.audit_log import AuditEvent
from fedpeft_server.enrolment.certificate_authority import Authority, certificate_expiry
from fedpeft_server.enrolment.groups import Groups
from fedpeft_server.enrolment.issue import issue
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.labels import Labels
from fedpeft_server.enrolment.registry import EnrolledDevice, Status

__all__ = [
    "access_tokens", "approve", "audit", "create_access_token", "create_join_token", "delete", "deny", "device",
    "devices", "group", "join_tokens", "rename", "revoke", "revoke_access_token", "revoke_join_token",
]  # fmt: skip

DAY_S = 86400
AUDIT_LINES = 500


def devices(site: Administered, asked: Asked) -> object:
    """Every device."""
    seen = _Seen.of(site)
    return [seen.view(site, one, asked.role) for one in site.registry.devices()]


def device(site: Administered, asked: Asked) -> object:
    """One device."""
    return _Seen.of(site).view(site, _device(site, asked), asked.role)


def approve(site: Administered, asked: Asked) -> object:
    """Admit a waiting device that shows this code, as its owner reads it out."""
    site.admission.approve(_device(site, asked).name, asked.text("code"), actor=asked.by)
    return device(site, asked)


def deny(site: Administered, asked: Asked) -> object:
    """Turn a waiting device away; it is told why."""
    site.admission.deny(_device(site, asked).name, asked.text("reason"), actor=asked.by)
    return device(site, asked)


def revoke(site: Administered, asked: Asked) -> object:
    """Put a device out, from its next request on; it is told why."""
    site.admission.revoke(_device(site, asked).name, asked.text("reason"), actor=asked.by)
    return device(site, asked)


def rename(site: Administered, asked: Asked) -> object:
    """Call a device something else, for operators; among devices it keeps the name that it enrolled under."""
    named, label = _device(site, asked), asked.text("label")
    label = Labels(site.registry).put(named, label)
    site.audit.append(AuditEvent.RENAMED, actor=asked.by, subject=named.name, detail={"label": label})
    return device(site, asked)


def group(site: Administered, asked: Asked) -> object:
    """Put a device into a group, or take it out; a run may be submitted for one group."""
    named, name, member = _device(site, asked), asked.text("group"), asked.flag("member")
    Groups(site.registry).put(named, name, member=member)
    detail: dict[str, str | int | float] = {"group": name, "member": int(member)}
    site.audit.append(AuditEvent.GROUPED, actor=asked.by, subject=named.name, detail=detail)
    return device(site, asked)


def delete(site: Administered, asked: Asked) -> object:
    """Forget a device that was denied, revoked, or left; its keys are never accepted again."""
    name = _device(site, asked).name
    site.admission.delete(name, actor=asked.by)
    return {"name": name}


def join_tokens(site: Administered, asked: Asked) -> object:
    """Every join token, without secrets."""
    now = site.clock.utc().timestamp()
    return [join_token_view(token, now=now) for token in Tokens(site.registry, site.clock).ls()]


def create_join_token(site: Administered, asked: Asked) -> object:
    """A new join token. It is a secret, and shown once."""
    made = issue(
        site.home,
        site.registry,
        ttl_s=float(asked.number("ttl_s", DAY_S)),
        uses=asked.number("uses", 1),
        auto_approve=asked.flag("auto_approve"),
        organisation=asked.text("organisation"),
        actor=asked.by,
    )
    return {"id": made.token_id, "token": made.to_text()}


def revoke_join_token(site: Administered, asked: Asked) -> object:
    """Admit nobody else by a join token; devices that it admitted stay."""
    tokens, token_id = Tokens(site.registry, site.clock), asked.text("id")
    if tokens.find(token_id) is None:
        raise NotThere(f"Expected the name of a join token, found {token_id!r}; see `token ls`.")
    tokens.revoke(token_id)
    site.audit.append(AuditEvent.TOKEN_REVOKED, actor=asked.by, subject=token_id)
    return {"id": token_id}


def access_tokens(site: Administered, asked: Asked) -> object:
    """Every access token, without secrets."""
    now = site.clock.utc().timestamp()
    return [access_view(token, now=now) for token in site.access.ls()]


def create_access_token(site: Administered, asked: Asked) -> object:
    """A new access token. It is a secret, and shown once. On the coordinator's own machine only."""
    role = Role[asked.text("role", "viewer").upper()]
    text, made = site.access.create(
        role,
        asked.text("name"),
        ttl_s=float(asked.number("ttl_s", 30 * DAY_S)),
        ca_fingerprint=Authority.of_home(site.home, site.clock).fingerprint,
        entropy=os_entropy,
    )
    detail: dict[str, str | int | float] = {"role": role.word, "name": made.name, "until": round(made.expires_utc)}
    site.audit.append(AuditEvent.ACCESS_CREATED, actor=asked.by, subject=made.token_id, detail=detail)
    return {**access_view(made, now=site.clock.utc().timestamp()), "token": text}


def revoke_access_token(site: Administered, asked: Asked) -> object:
    """Take an access token back, from its next request on."""
    token_id = asked.text("id")
    if token_id not in {token.token_id for token in site.access.ls()}:
        raise NotThere(f"Expected the id of an access token, found {token_id!r}; see `admin-token ls`.")
    site.access.revoke(token_id)
    site.audit.append(AuditEvent.ACCESS_REVOKED, actor=asked.by, subject=token_id)
    return {"id": token_id}


def audit(site: Administered, asked: Asked) -> object:
    """Records of the audit log, newest first: those before a sequence number, or the last ones."""
    before = asked.number("before", -1)
    found = site.audit.page(before=None if before < 0 else before, most=asked.number("most", 100))
    return [audit_view(record) for record in reversed(found)]


def _device(site: Administered, asked: Asked) -> EnrolledDevice:
    return site.registry.device(asked.text("device"))


def _online(site: Administered) -> Mapping[str, bool] | None:
    """Name -> whether it is reached; None while no coordinator is up."""
    live = site.live()
    listed = live.get("devices") if live is not None else None
    if not isinstance(listed, list):
        return None
    return {str(one["name"]): bool(one["online"]) for one in listed if isinstance(one, dict)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a device's row in the registry does not say.

    Args:
        online: name -> whether it is reached; None while no coordinator is up.
        labels, groups: by identity key.
    """

    online: Mapping[str, bool] | None
    labels: Mapping[bytes, str]
    groups: Mapping[bytes, Set[str]]

    @classmethod
    def of(cls, site: Administered) -> "_Seen":
        return cls(_online(site), Labels(site.registry).all(), Groups(site.registry).all())

    def view(self, site: Administered, one: EnrolledDevice, role: Role) -> dict[str, object]:
        ended = bool(one.certificate) and certificate_expiry(one.certificate) <= site.clock.utc()
        return device_view(
            one,
            label=self.labels.get(one.identity, ""),
            groups=self.groups.get(one.identity, frozenset()),
            status="expired" if ended and one.status is Status.ACTIVE else one.status.value,
            online=None if self.online is None else self.online.get(one.name, False),
            role=role,
        )
