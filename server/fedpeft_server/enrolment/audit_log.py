"""audit.jsonl: who did what and when, each line bound to all before it.

A line is canonical JSON with the fields of ``AuditRecord`` and ``digest``, where ``digest``
is the SHA-256 of the line without it, and ``previous`` the digest of the line before (64 zeros for the first). So a
line cannot be changed, removed or put in between without every later digest changing; cutting off the end is seen
only against a digest noted elsewhere (``AuditLog.head``, which ``doctor`` prints). Several processes append: the
coordinator and the operator's commands, one at a time under an advisory lock.

No secret, no key and no number about anybody's data goes in here; names come from outside and are data, never format.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fedpeft.clock import Clock
from fedpeft.errors import IntegrityFailed
from fedpeft.files import PRIVATE, append_whole, last_lines, sync

__all__ = ["AuditEvent", "AuditLog", "AuditRecord"]

GENESIS = "0" * 64
_TAIL = 1 << 16  # a record is far smaller: names, reasons and details are bounded


class AuditEvent(Enum):
    """Everything that is recorded."""

    TOKEN_CREATED = "token-created"  # noqa: S105
    TOKEN_REVOKED = "token-revoked"  # noqa: S105
    ENROL_REQUESTED = "enrol-requested"
    ENROL_REFUSED = "enrol-refused"
    STRANGERS_REFUSED = "strangers-refused"
    APPROVED = "approved"
    DENIED = "denied"
    RENEWED = "renewed"
    REVOKED = "revoked"
    LEFT = "left"
    DELETED = "deleted"
    RENAMED = "renamed"
    GROUPED = "grouped"
    COORDINATOR_STARTED = "coordinator-started"
    COORDINATOR_STOPPED = "coordinator-stopped"
    RUN_SUBMITTED = "run-submitted"
    RUN_PREFERRED = "run-preferred"
    RUN_STOP_ASKED = "run-stop-asked"
    RUN_REQUEUED = "run-requeued"
    RUN_STARTED = "run-started"
    RUN_RESUMED = "run-resumed"
    RUN_ENDED = "run-ended"
    RUN_REMOVED = "run-removed"
    ROUND_COMMITTED = "round-committed"
    ROUND_ABORTED = "round-aborted"
    ROUND_BURNT = "round-burnt"
    SUM_RELEASED = "sum-released"
    REPLAY_REFUSED = "replay-refused"
    BACKED_UP = "backed-up"
    RESTORED = "restored"
    UPGRADED = "upgraded"
    ACCESS_CREATED = "access-created"
    ACCESS_REVOKED = "access-revoked"
    ACCESS_REFUSED = "access-refused"
    SIGNED_IN = "signed-in"
    RESULT_FETCHED = "result-fetched"
    WEBHOOK_ADDED = "webhook-added"
    WEBHOOK_REMOVED = "webhook-removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One line.

    Args:
        sequence: from 0.
        utc: ISO 8601, by the coordinator's clock.
        event: what happened.
        actor: who did it: ``operator`` (on the coordinator's machine), ``coordinator``, a device's address, or the name
            and id of an access token.
        subject: whom or what it concerns: a device, token or run.
        detail: further facts.
        previous: digest of the line before.
    """

    sequence: int
    utc: str
    event: AuditEvent
    actor: str
    subject: str
    detail: Mapping[str, str | int | float]
    previous: str

    @property
    def digest(self) -> str:
        """SHA-256 of everything else, hex."""
        return hashlib.sha256(_canonical(self._content()).encode()).hexdigest()

    def line(self) -> str:
        """The line, without its newline."""
        return _canonical({**self._content(), "digest": self.digest})

    def _content(self) -> dict[str, object]:
        return {
            "sequence": self.sequence,
            "utc": self.utc,
            "event": self.event.value,
            "actor": self.actor,
            "subject": self.subject,
            "detail": dict(self.detail),
            "previous": self.previous,
        }


class AuditLog:
    """Appends to the file and checks it.

    Args:
        path: the file; made 0600 with the first record.
        clock: for the records' times.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock

    def append(
        self, event: AuditEvent, *, actor: str, subject: str, detail: Mapping[str, str | int | float] | None = None
    ) -> AuditRecord:
        """Adds a record; on the disk when it returns.

        Raises:
            IntegrityFailed: the last line is no record: the file was changed from outside.
        """
        with self._locked() as descriptor:
            start, last = self._last(descriptor)
            record = AuditRecord(
                sequence=last.sequence + 1 if last else 0,
                utc=self._clock.utc().isoformat(),
                event=event,
                actor=actor[:200],
                subject=subject[:200],
                detail={key: value[:500] if isinstance(value, str) else value for key, value in (detail or {}).items()},
                previous=last.digest if last else GENESIS,
            )
            os.ftruncate(descriptor, start)  # what a crash tore off in the middle of a line was never answered for
            append_whole(descriptor, record.line().encode() + b"\n")
        if start == 0:
            sync(self._path.parent)
        return record

    def records(self) -> Iterator[AuditRecord]:
        """Every record, oldest first, each checked against the one before; a torn last line is left out.

        Raises:
            IntegrityFailed: names the first line that is not what was written.
        """
        previous, number = GENESIS, 0
        content = self._path.read_bytes() if self._path.exists() else b""
        for line in content.split(b"\n")[:-1]:
            record = _parse(line)
            if record is None or record.previous != previous or record.sequence != number:
                raise IntegrityFailed(
                    f"Expected an unbroken chain in {self._path}, found it broken at line {number + 1}; "
                    "the file was changed: compare it with a backup."
                )
            yield record
            previous, number = record.digest, number + 1

    def page(self, *, before: int | None, most: int) -> tuple[AuditRecord, ...]:
        """The last ``most`` records before a sequence number, or of all, oldest first; reads little more than those.

        Each is checked against its own digest and its neighbours on the page; the whole chain is ``records``'.

        Raises:
            IntegrityFailed: a line of the page is not what was written.
        """

        def is_before(line: bytes) -> bool:
            record = _parse(line)
            return before is None or (record is not None and record.sequence < before)

        found: list[AuditRecord] = []
        for line in last_lines(self._path, most, is_before):
            record = _parse(line)
            if record is None or (found and record.previous != found[-1].digest):
                raise IntegrityFailed(
                    f"Expected an unbroken chain in {self._path}, found another line after record "
                    f"{found[-1].sequence if found else '?'}; the file was changed: compare it with a backup."
                )
            found.append(record)
        return tuple(found)

    def newest(self) -> int:
        """The sequence number of the last record; -1: there is none.

        Raises:
            IntegrityFailed: as ``page``.
        """
        return max((record.sequence for record in self.page(before=None, most=1)), default=-1)

    def head(self) -> str:
        """The digest of the last record after checking all: note it elsewhere to see that nothing was cut off.

        Raises:
            IntegrityFailed: as ``records``.
        """
        head = GENESIS
        for record in self.records():
            head = record.digest
        return head

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _last(self, descriptor: int) -> tuple[int, AuditRecord | None]:
        """Where the whole lines end, and the last of them."""
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
        whole = tail.rfind(b"\n") + 1
        if whole == 0:
            if size > len(tail):
                raise IntegrityFailed(f"Expected lines in {self._path}, found none at its end; restore it.")
            return 0, None
        record = _parse(tail[:whole].splitlines()[-1])
        if record is None:
            raise IntegrityFailed(
                f"Expected a record at the end of {self._path}, found another line; compare it with a backup."
            )
        return size - len(tail) + whole, record


def _canonical(content: Mapping[str, object]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _parse(line: bytes) -> AuditRecord | None:
    """The record of a line; None when it is none, or its digest is another's."""
    try:
        content = json.loads(line)
        digest = content.pop("digest")
        record = AuditRecord(**{**content, "event": AuditEvent(content["event"])})
        return record if record.digest == digest and record.line().encode() == line else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
