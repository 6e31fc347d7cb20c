"""What is shown of a coordinator: runs, rounds, devices, tokens and audit records as JSON values.

Nothing of a round that is not in its metrics row, and no secret: no key, no token, no certificate, no path.
"""

import hashlib
from collections.abc import Mapping, Set
from functools import lru_cache

from fedpeft.errors import IntegrityFailed
from fedpeft.planner import DeviceProfile
from fedpeft_server.admin.access import AccessToken, Role
from fedpeft_server.enrolment.audit_log import AuditRecord
from fedpeft_server.enrolment.certificate_authority import certificate_expiry
from fedpeft_server.enrolment.join_tokens import TokenRecord
from fedpeft_server.enrolment.registry import EnrolledDevice
from fedpeft_server.jobs.job_queue import Job
from fedpeft_server.run.records import EventRecord, RoundMetrics

__all__ = ["access_view", "audit_view", "device_view", "event_view", "job_view", "join_token_view", "round_view"]

View = dict[str, object]


def job_view(job: Job) -> View:
    """One submitted run."""
    return {
        "number": job.number, "name": job.name, "state": job.state.value, "run": job.run, "reason": job.reason,
        "priority": job.priority, "group": job.group, "without": list(job.without),
        "start_at": job.start_at, "every_s": job.every_s,
    }  # fmt: skip


def round_view(row: RoundMetrics) -> View:
    """One committed round."""
    return {
        "round": row.round, "burnt": row.burnt, "loss": row.loss, "accuracy": row.accuracy,
        "train_loss": row.train_loss, "invited": row.devices_invited, "ready": row.devices_ready,
        "survived": row.devices_survived, "bytes_up": row.bytes_up, "bytes_down": row.bytes_down,
        "seconds": row.seconds, "skipped": dict(row.skipped),
        "devices": [
            {"name": one.client, "state": one.state, "reason": one.reason, "seconds": one.seconds}
            for one in row.clients
        ],
    }  # fmt: skip


def event_view(event: EventRecord) -> View:
    """One transition of a round."""
    return {
        "at": event.at, "kind": event.kind, "round": event.round, "device": event.client,
        "detail": str(event.detail.get("detail", "")), "stage": str(event.detail.get("stage", "")),
    }  # fmt: skip


def device_view(
    device: EnrolledDevice, *, label: str, groups: Set[str], status: str, online: bool | None, role: Role
) -> View:
    """One device.

    Args:
        device: as the registry has it.
        label: what operators call it; empty: by its name.
        groups: that it is in.
        status: its status, in a word.
        online: whether the coordinator reaches it; None when no coordinator is up to know.
        role: who looks; the code that a waiting device shows is for those who may approve it.
    """
    until = certificate_expiry(device.certificate).isoformat(timespec="minutes") if device.certificate else None
    return {
        "name": device.name, "label": label, "groups": sorted(groups),
        "organisation": device.organisation, "status": status, "online": online,
        "since": device.since, "code": device.code if role >= Role.ADMIN else None, "reason": device.reason,
        "hardware": _hardware(device.profile), "certificate_until": until, "serial": device.serial,
        "identity": device.identity.hex(), "node_key_sha256": hashlib.sha256(device.node_key).hexdigest(),
        "token": device.token_id,
    }  # fmt: skip


@lru_cache(maxsize=1024)
def _hardware(profile: str) -> str:
    try:
        found = DeviceProfile.from_json(profile)
    except IntegrityFailed:  # of a version that checked less
        return "hardware unknown"
    gpu = f", GPU {found.vram_bytes / 2**30:.0f} GiB" if found.vram_bytes else ""
    return f"{found.cores} cores, {found.total_bytes / 2**30:.0f} GiB{gpu}"


def join_token_view(token: TokenRecord, *, now: float) -> View:
    """One join token, without its secret."""
    return {
        "id": token.token_id, "state": _state(token.revoked, token.expires_utc, now), "uses": token.uses,
        "used": token.used, "expires_utc": token.expires_utc, "auto_approve": token.auto_approve,
        "organisation": token.organisation,
    }  # fmt: skip


def access_view(token: AccessToken, *, now: float) -> View:
    """One access token, without its secret."""
    return {
        "id": token.token_id, "state": _state(token.revoked, token.expires_utc, now), "role": token.role.word,
        "name": token.name, "expires_utc": token.expires_utc,
    }  # fmt: skip


def _state(revoked: bool, expires_utc: float, now: float) -> str:
    return "revoked" if revoked else "expired" if now >= expires_utc else "good"


def audit_view(record: AuditRecord) -> View:
    """One line of the audit log."""
    detail: Mapping[str, object] = dict(record.detail)
    return {
        "sequence": record.sequence, "utc": record.utc, "event": record.event.value, "actor": record.actor,
        "subject": record.subject, "detail": detail, "digest": record.digest,
    }  # fmt: skip
