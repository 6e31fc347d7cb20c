"""Sends what happened: records of the audit log, in their order, each until it is taken or is too old.

The log is the queue, so nothing is lost while an address or the coordinator is down, and a message may come twice (its
id is the same). Each address has a turn of its own: a slow one holds no other, and none holds a round. A message is the
record alone, and no record has a secret or a number about anybody's data (``fedpeft_server.enrolment.audit_log``).
"""

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import Message
from typing import IO

from fedpeft import __version__
from fedpeft.clock import Clock
from fedpeft.errors import FedpeftError
from fedpeft_server.enrolment.audit_log import AuditLog, AuditRecord
from fedpeft_server.webhooks.hooks import Webhook, Webhooks, signature

__all__ = ["Deliveries", "Refused", "send"]

LOOK_S = 1.0
PAGE = 64
ANSWER_S = 10.0
LONGEST_PAUSE_S = 600.0
OLDEST = timedelta(days=3)
"""Older records are passed over: an address that has been down for longer is told of what happens from then on."""
NOTED_EVERY = 512
"""Records that an address is not told of, before it is noted durably how far it has come."""

_log = logging.getLogger(__name__)


class Refused(Exception):
    """An address did not take a message; says what it answered."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message goes to the address that the operator named, and to no other that it points to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """None: the redirect is an error."""


def send(hook: Webhook, message_id: str, body: bytes, *, timestamp: int) -> None:
    """One message; returns when it was taken. Through the proxy of the environment, as other HTTPS is.

    To this machine itself without one: it would read the message, and has a localhost of its own.

    Raises:
        Refused: it was not: no connection, a redirect, or a status of 300 or more.
    """
    request = urllib.request.Request(hook.url, data=body, method="POST")  # noqa: S310 (its scheme was checked)
    for name, value in {
        "content-type": "application/json",
        "user-agent": f"fedpeft/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(hook.secret, message_id, timestamp, body),
    }.items():
        request.add_header(name, value)
    proxies = [urllib.request.ProxyHandler({})] if hook.is_here else []
    try:
        with urllib.request.build_opener(_NoRedirect, *proxies).open(request, timeout=ANSWER_S):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(f"it answered {error.code}") from error
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise Refused(f"{getattr(error, 'reason', error)}"[:200]) from error
    except Exception as error:  # http.client's own, for answers that are no HTTP
        raise Refused(type(error).__name__) from error


def message_of(record: AuditRecord) -> bytes:
    """What is sent of a record; ``type``, ``timestamp`` and ``data`` as Standard Webhooks has them."""
    data = {
        "sequence": record.sequence,
        "actor": record.actor,
        "subject": record.subject,
        "detail": dict(record.detail),
    }
    return json.dumps({"type": record.event.value, "timestamp": record.utc, "data": data}).encode()


@dataclass(slots=True)
class _Address:
    """How one address stands."""

    last: int
    noted: int
    failures: int = 0
    not_before_s: float = 0.0


class Deliveries:
    """A thread beside the coordinator's.

    Args:
        hooks: looked at anew each second.
        audit: what is told.
        clock: for pauses and ages.
        count: told the outcome of each message, ``taken``, ``refused`` or ``passed-over``.
    """

    def __init__(self, hooks: Webhooks, audit: AuditLog, clock: Clock, count: Callable[[str], None]) -> None:
        self._hooks, self._audit, self._clock, self._count = hooks, audit, clock, count
        self._closed = threading.Event()
        self._addresses: dict[str, _Address] = {}
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Sends nothing more; a message on its way is not waited for."""
        self._closed.set()

    def _run(self) -> None:
        sending: dict[str, threading.Thread] = {}
        while not self._closed.wait(LOOK_S):
            try:
                hooks = self._hooks.all()
            except (FedpeftError, OSError) as error:
                _log.error("the webhooks cannot be read: %s", error)
                continue
            for hook in hooks:
                if hook.name not in sending or not sending[hook.name].is_alive():
                    # Daemons, one an address: whoever answers a byte a minute holds its own, and not the exit.
                    thread = threading.Thread(
                        target=self._serve, args=(hook,), name=f"webhook-{hook.name}", daemon=True
                    )
                    thread.start()
                    sending[hook.name] = thread

    def _serve(self, hook: Webhook) -> None:
        try:
            self._catch_up(hook)
        except (FedpeftError, OSError) as error:
            _log.error("webhook %s: %s", hook.name, error)

    def _catch_up(self, hook: Webhook) -> None:
        """Tells one address all that it was not told, or what it takes."""
        address = self._addresses.get(hook.name)
        noted = self._hooks.last(hook.name)
        if address is None or noted != address.noted:  # new, or removed and added again
            newest = self._audit.newest()
            if noted is None or noted > newest:  # lost, or of a longer log: nobody can say what it was told of this one
                _log.warning("webhook %s: it is told of what happens from now on, after record %d", hook.name, newest)
                self._hooks.delivered(hook.name, newest)
                noted = newest
            address = self._addresses[hook.name] = _Address(last=noted, noted=noted)
        while not self._closed.is_set() and self._clock.monotonic_s() >= address.not_before_s:
            page = self._audit.page(before=address.last + 1 + PAGE, most=PAGE)
            waiting = [record for record in page if record.sequence > address.last]
            if not waiting:
                return
            for record in waiting:
                if record.event in hook.events:
                    if not self._hooks.has(hook) or not self._told(hook, address, record):
                        return
                    if not self._hooks.has(hook):  # removed meanwhile: how far it came is no matter of its namesake
                        return
                address.last = record.sequence
                if record.event in hook.events or address.last - address.noted >= NOTED_EVERY:
                    self._hooks.delivered(hook.name, address.last)
                    address.noted = address.last

    def _told(self, hook: Webhook, address: _Address, record: AuditRecord) -> bool:
        """Whether the address need not be told of this record any more."""
        if self._closed.is_set():
            return False
        now = self._clock.utc()
        if now - datetime.fromisoformat(record.utc) > OLDEST:
            _log.warning("webhook %s: record %d is too old and passed over", hook.name, record.sequence)
            self._count("passed-over")
            return True
        try:
            send(hook, f"msg_{record.digest[:32]}", message_of(record), timestamp=int(now.timestamp()))
        except Refused as refused:
            address.failures += 1
            pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(address.failures, 16))
            address.not_before_s = self._clock.monotonic_s() + pause_s
            _log.warning("webhook %s: %s; it is tried again in %.0f s", hook.name, refused, pause_s)
            self._count("refused")
            return False
        address.failures, address.not_before_s = 0, 0.0
        self._count("taken")
        return True
