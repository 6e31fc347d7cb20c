"""Who is admitted: the answers to devices that want in, and the operator's decisions about them.

The token's secret is proven before anything else is said, and every decision that changes something is in the audit
log. Asking again with the same keys gives the same answer, so a lost answer costs nothing; another key on a spent
token is refused. Used by the running coordinator and by `fedpeft coordinator clients`, over the same registry.
"""

from dataclasses import replace

from fedpeft.clock import Clock
from fedpeft.deployment.ceremony import short_code
from fedpeft.deployment.messages import Accepted, Application, EnrolRequest, RefusalReason, Refused, Renewed, Waiting
from fedpeft.errors import ConfigInvalid
from fedpeft.terminal import printable
from fedpeft.wire import WireError, decode
from fedpeft_server.enrolment.applications import objection_to
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, certificate_expiry, node_key_of, request_key
from fedpeft_server.enrolment.join_tokens import TokenRecord, Tokens
from fedpeft_server.enrolment.labels import Labels
from fedpeft_server.enrolment.refusals import RefusedStrangers
from fedpeft_server.enrolment.registry import ENDED, EnrolledDevice, Registry, Status
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.rate_limit import RateLimit

__all__ = ["Admission"]

_MORE_WAITING = 20
"""Applications of one token beyond its uses that may wait: who knows a token can ask in others' place."""
_RECORDED_PER_S, _RECORDED_BURST = 1 / 300, 20
"""Refusals with a record of their own, of one token."""
_WHY_ENDED = {
    Status.DENIED: RefusalReason.DENIED,
    Status.REVOKED: RefusalReason.REVOKED,
    Status.LEFT: RefusalReason.LEFT,
}


class Admission:
    """The gatekeeper of one coordinator's home. Thread-safe as far as the registry is.

    Raises:
        ConfigInvalid: the home was not initialised.
    """

    def __init__(self, home: CoordinatorHome, registry: Registry, audit: AuditLog, clock: Clock) -> None:
        self._registry, self._audit, self._clock = registry, audit, clock
        self._authority = Authority.of_home(home, clock)
        self._settings, self._coordinator_key = home.settings(), home.identity().public
        self._tokens = Tokens(registry, clock)
        self.strangers = RefusedStrangers(audit, clock)
        self._recorded = RateLimit(per_s=_RECORDED_PER_S, burst=_RECORDED_BURST, clock=clock)

    def prover(self, request: EnrolRequest) -> str | None:
        """The token whose secret a request proves, as a name to count by; None for a stranger. Writes nothing."""
        try:
            application = decode(request.application, Application)
        except WireError:
            return None
        token = self._tokens.proven(application.token_id, request.application, request.proof)
        return None if token is None else token.token_id

    def answer(self, request: EnrolRequest, *, peer: str) -> Accepted | Waiting | Refused:
        """The answer to a device that wants in.

        Args:
            request: as it came.
            peer: its address, for the audit log.
        """
        try:
            application = decode(request.application, Application)
        except WireError as error:
            self.strangers.count(peer)
            return Refused(reason=RefusalReason.MALFORMED, detail=str(error))
        token = self._tokens.proven(application.token_id, request.application, request.proof)
        if token is None:  # who cannot prove a token's secret learns nothing, and writes nothing
            self.strangers.count(peer)
            return Refused(reason=RefusalReason.NOT_ACCEPTED, detail="the coordinator does not know this token")
        node_key = request_key(application.csr)
        if isinstance(node_key, str) or (wrong := objection_to(application, self._authority.fingerprint)):
            wrong = node_key if isinstance(node_key, str) else wrong
            return self._refused(peer, application, RefusalReason.MALFORMED, wrong)
        known = self._registry.by_node_key(node_key)
        if known is not None:
            return self._repeat(known, application, token, peer)
        with self._registry.change():
            return self._admit(application, self._tokens.reread(token), node_key, peer)

    def approve(self, name: str, code: str, *, actor: str = "operator") -> EnrolledDevice:
        """Lets a waiting device in.

        Args:
            name: the device.
            code: what its owner reads from the device; upper and lower case and the dash do not matter.
            actor: who decides, for the audit log.

        Raises:
            NotEnrolled: no device of that name.
            ConfigInvalid: it does not wait, or shows another code: then it is not the device it says.
        """
        with self._registry.change():
            device = self._registry.device(name)
            if device.status is not Status.PENDING:
                raise ConfigInvalid(f"Expected {name} to wait for approval, found it {device.status.value}.")
            if _plain(code) != _plain(device.code):
                raise ConfigInvalid(
                    f"Expected the code that {name} shows, found another; ask its owner to read it out. "
                    "If it stays different, somebody else asked under that name: deny it."
                )
            token = self._tokens.find(device.token_id)
            if token is not None and token.used >= token.uses:
                raise ConfigInvalid(
                    f"Expected a use left of token {token.token_id}, found all {token.uses} spent on other devices; "
                    f"give {name}'s owner another token, or deny it."
                )
            admitted = self._with_certificate(replace(device, status=Status.ACTIVE))
            self._registry.put(admitted)
            if token is not None:
                self._tokens.spend(token, admitted.node_key)
        self._audit.append(AuditEvent.APPROVED, actor=actor, subject=name, detail={"serial": admitted.serial or ""})
        return admitted

    def deny(self, name: str, reason: str, *, actor: str = "operator") -> None:
        """Turns a waiting device away; it is told why."""
        self._end(name, Status.PENDING, Status.DENIED, reason, AuditEvent.DENIED, actor)

    def revoke(self, name: str, reason: str, *, actor: str = "operator") -> None:
        """Puts a device out from its next request on; it is told why."""
        self._end(name, Status.ACTIVE, Status.REVOKED, reason, AuditEvent.REVOKED, actor)

    def leave(self, device: EnrolledDevice, reason: str) -> Refused:
        """The device itself goes."""
        self._end(device.name, Status.ACTIVE, Status.LEFT, reason, AuditEvent.LEFT, device.name)
        return Refused(reason=RefusalReason.LEFT, detail=reason)

    def delete(self, name: str, *, actor: str = "operator") -> None:
        """Forgets a device that ended; its keys are never accepted again.

        Raises:
            NotEnrolled: no device of that name.
            ConfigInvalid: it has not ended.
        """
        with self._registry.change():
            device = self._registry.device(name)
            if device.status not in ENDED:
                raise ConfigInvalid(f"Expected {name} to have ended, found it {device.status.value}; revoke it first.")
            self._registry.delete(device)
        self._audit.append(AuditEvent.DELETED, actor=actor, subject=name)

    def renew(self, device: EnrolledDevice, csr: bytes) -> Renewed | Refused:
        """A new certificate; a new key counts from its first use on, so that a lost answer locks nobody out."""
        node_key = request_key(csr)
        if isinstance(node_key, str):
            return Refused(reason=RefusalReason.MALFORMED, detail=node_key)
        with self._registry.change():
            holder = self._registry.by_node_key(node_key)
            if self._registry.is_retired(node_key) or (holder is not None and holder.name != device.name):
                return Refused(reason=RefusalReason.KEY_RETIRED, detail="this key was used before; make another")
            renewed = self._with_certificate(replace(device, csr=csr))
            if holder is not None:
                self._registry.put(renewed)
            else:
                serial = renewed.serial or ""
                self._registry.put_successor(device.name, node_key, csr, serial, renewed.certificate)
        detail = {"serial": renewed.serial or "", "key": "same" if holder else "new"}
        self._audit.append(AuditEvent.RENEWED, actor=device.name, subject=device.name, detail=detail)
        return Renewed(certificate=renewed.certificate)

    def admit(self, certificate: bytes) -> EnrolledDevice | Refused:
        """The active device that a client certificate (PEM, of a finished TLS handshake) speaks for, or why not."""
        if certificate_expiry(certificate) <= self._clock.utc():
            return Refused(
                reason=RefusalReason.EXPIRED, detail="the device's certificate has expired; join again with a new token"
            )
        node_key = node_key_of(certificate)
        device = self._registry.by_node_key(node_key) or self._registry.take_successor(node_key)
        if device is None:
            return Refused(reason=RefusalReason.KEY_RETIRED, detail="this key is not a device's any more")
        if device.status is not Status.ACTIVE:
            return _ended(device)
        return device

    def _repeat(
        self, known: EnrolledDevice, application: Application, token: TokenRecord, peer: str
    ) -> Accepted | Waiting | Refused:
        """The same keys again: the same answer, and a new certificate when the old one has run out meanwhile."""
        if known.identity != application.identity or known.name != application.device:
            detail = "this key belongs to another device; make new keys"
            return self._refused(peer, application, RefusalReason.KEY_RETIRED, detail)
        if known.status is Status.PENDING:
            return Waiting(code=known.code)
        if known.status is not Status.ACTIVE:
            return _ended(known)
        if certificate_expiry(known.certificate) <= self._clock.utc():
            with self._registry.change():
                if objection := self._tokens.objection(self._tokens.reread(token)):
                    return self._refused(peer, application, *objection)
                self._tokens.spend(token, known.node_key)
                known = self._with_certificate(known)
                self._registry.put(known)
            self._audit.append(
                AuditEvent.RENEWED, actor=peer, subject=known.name, detail={"serial": known.serial or ""}
            )
        return self._accepted(known)

    def _admit(
        self, application: Application, token: TokenRecord, node_key: bytes, peer: str
    ) -> Accepted | Waiting | Refused:
        """A device that was not seen before; inside one transaction, so that a use is spent once."""
        if objection := self._tokens.objection(token):
            return self._refused(peer, application, *objection)
        waiting = sum(one.token_id == token.token_id for one in self._registry.devices(Status.PENDING))
        if not token.auto_approve and waiting >= token.uses + _MORE_WAITING:
            detail = f"{waiting} devices with this token wait for the operator already; ask again when they are decided"
            return self._refused(peer, application, RefusalReason.USED_UP, detail)
        if self._registry.is_retired(node_key) or self._registry.knows_identity(application.identity):
            detail = "these keys were used before; a device that joins anew makes new ones"
            return self._refused(peer, application, RefusalReason.KEY_RETIRED, detail)
        holder = self._registry.same_name(application.device)
        if holder is not None and holder.name != application.device and holder.status not in ENDED:
            detail = f"another device is called {holder.name}, which looks the same; choose another with --name"
            return self._refused(peer, application, RefusalReason.NAME_TAKEN, detail)
        if Labels(self._registry).holder(application.device) is not None:
            detail = f"operators call another device {application.device}; choose another with --name"
            return self._refused(peer, application, RefusalReason.NAME_TAKEN, detail)
        organisation = self._registry.organisation(token.organisation or application.organisation or application.device)
        holder = self._registry.find(application.device)
        if holder is not None and holder.status not in ENDED and not self._may_return(holder, organisation):
            detail = f"another device is called {application.device}; choose another with --name"
            return self._refused(peer, application, RefusalReason.NAME_TAKEN, detail)
        device = EnrolledDevice(
            name=application.device,
            organisation=organisation,
            status=Status.ACTIVE if token.auto_approve else Status.PENDING,
            identity=application.identity,
            node_key=node_key,
            csr=application.csr,
            serial=None,
            certificate=b"",
            profile=application.profile,
            code=short_code(self._authority.fingerprint, node_key, application.identity),
            token_id=token.token_id,
            reason="",
            node_id=None,
            since=self._clock.utc().isoformat(),
        )
        if token.auto_approve:
            device = self._with_certificate(device)
        if token.auto_approve:
            self._tokens.spend(token, node_key)
        self._registry.put(device)
        facts = {"organisation": device.organisation, "token": token.token_id, "code": device.code}
        self._audit.append(AuditEvent.ENROL_REQUESTED, actor=peer, subject=device.name, detail=facts)
        if device.status is Status.PENDING:
            return Waiting(code=device.code)
        facts = {"serial": device.serial or "", "token": token.token_id}
        self._audit.append(AuditEvent.APPROVED, actor="token", subject=device.name, detail=facts)
        return self._accepted(device)

    def _may_return(self, holder: EnrolledDevice, organisation: str) -> bool:
        """Whether a name is free again: its certificate has ended, and the same organisation asks for it."""
        if holder.status is not Status.ACTIVE or holder.organisation != organisation:
            return False
        return certificate_expiry(holder.certificate) <= self._clock.utc()

    def _with_certificate(self, device: EnrolledDevice) -> EnrolledDevice:
        serial, certificate = self._authority.sign_device(
            device.csr, device=device.name, organisation=device.organisation, identity=device.identity
        )
        return replace(device, serial=serial, certificate=certificate, since=self._clock.utc().isoformat())

    def _accepted(self, device: EnrolledDevice) -> Accepted:
        return Accepted(
            device=device.name,
            organisation=device.organisation,
            certificate=device.certificate,
            fleet_port=self._settings.fleet_port,
            service_port=self._settings.service_port,
            coordinator_key=self._coordinator_key,
        )

    def _end(self, name: str, before: Status, after: Status, reason: str, event: AuditEvent, actor: str) -> None:
        with self._registry.change():
            device = self._registry.device(name)
            if device.status is not before:
                raise ConfigInvalid(f"Expected {name} to be {before.value}, found it {device.status.value}.")
            now = self._clock.utc().isoformat(timespec="seconds")
            by = "" if actor == name else f" by {actor}"
            told = f"{after.value}{by} at {now}: {printable(reason) or 'no reason given'}"
            self._registry.put(replace(device, status=after, reason=told, since=now))
        self._audit.append(event, actor=actor, subject=name, detail={"reason": reason})

    def _refused(self, peer: str, application: Application, reason: RefusalReason, detail: str) -> Refused:
        if not self._recorded.allows(application.token_id):
            self.strangers.count(peer)  # with a token, but as often as one
            return Refused(reason=reason, detail=detail)
        facts = {"reason": reason.value, "token": application.token_id[:40]}
        self._audit.append(AuditEvent.ENROL_REFUSED, actor=peer, subject=application.device, detail=facts)
        return Refused(reason=reason, detail=detail)


def _ended(device: EnrolledDevice) -> Refused:
    return Refused(reason=_WHY_ENDED.get(device.status, RefusalReason.DENIED), detail=device.reason or "not approved")


def _plain(code: str) -> str:
    return code.replace("-", "").strip().upper()
