"""Which addresses are told of which events, with which secret; written by commands, read by the coordinator.

::

    HOME/webhooks/NAME.json   url, events and secret (Webhook); 0600
    HOME/webhooks/NAME.last   the sequence number of the last audit record that was delivered

Adding one works while the coordinator is down. It is told of what happens from then on.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.files import PRIVATE, write_file
from fedpeft_server.enrolment.audit_log import AuditEvent

__all__ = ["MOST_HOOKS", "USUAL", "Webhook", "Webhooks", "signature"]

MOST_HOOKS = 16
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
SECRET_BYTES = 32
USUAL = (
    AuditEvent.ENROL_REQUESTED,
    AuditEvent.RUN_STARTED,
    AuditEvent.RUN_ENDED,
    AuditEvent.ROUND_ABORTED,
    AuditEvent.ROUND_BURNT,
)
"""What is told if nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One address.

    Args:
        name: lower-case letters, digits and hyphens, at most 40.
        url: ``https://...``, or ``http://`` to this machine itself.
        events: of the audit log, that it is told of.
        secret: 32 bytes that messages are signed with; whoever receives them has the same.
    """

    name: str
    url: str
    events: tuple[AuditEvent, ...]
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigInvalid(
                f"Expected a webhook's name of lower-case letters, digits and hyphens, found {self.name!r}."
            )
        expect_url(self.url)
        if not self.events or len(self.secret) != SECRET_BYTES:
            raise ConfigInvalid(f"Expected events and a secret of {SECRET_BYTES} bytes for webhook {self.name}.")

    @property
    def host(self) -> str:
        """Of the URL; the rest of it may be a secret."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return _is_loopback(self.host)

    @property
    def secret_text(self) -> str:
        """As receivers' libraries take it (standardwebhooks.com): ``whsec_`` and base64."""
        return f"whsec_{base64.b64encode(self.secret).decode()}"


def expect_url(url: str) -> None:
    """Refuses what is neither https nor this machine, and what carries a password into logs.

    Raises:
        ConfigInvalid: it is.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigInvalid(f"Expected a URL, found {error}.") from error
    if not host or not url.isascii() or any(c.isspace() or ord(c) < 32 for c in url) or port == 0:
        raise ConfigInvalid("Expected a URL such as https://HOST/PATH, found another.")
    if parts.username is not None or parts.password is not None:
        raise ConfigInvalid("Expected a URL without a user and password: messages are signed instead.")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigInvalid(f"Expected https://, or http:// to this machine itself, found {parts.scheme}://{host}.")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of a message: HMAC-SHA256 over ``id.timestamp.body``, base64 (Standard Webhooks 1)."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


class Webhooks:
    """The folder.

    Args:
        path: ``HOME/webhooks``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, url: str, events: Sequence[AuditEvent], *, last: int) -> Webhook:
        """Takes an address, with a new secret.

        Args:
            last: the sequence number of the newest audit record; it is told of later ones. -1: there is none.

        Raises:
            ConfigInvalid: a name that is taken, a URL that is refused, or there are too many.
        """
        known = {hook.name for hook in self.all()}
        if name in known:
            raise ConfigInvalid(f"Expected a new name, found that there is a webhook {name}; remove it first.")
        if len(known) >= MOST_HOOKS:
            raise ConfigInvalid(f"Expected at most {MOST_HOOKS} webhooks, found as many; remove one first.")
        hook = Webhook(name=name, url=url, events=tuple(dict.fromkeys(events)), secret=os_entropy(SECRET_BYTES))
        self._path.mkdir(mode=0o700, exist_ok=True)
        self.delivered(name, last)
        content = {"url": url, "events": [event.value for event in hook.events], "secret": hook.secret.hex()}
        write_file(self._file(name, "json"), (json.dumps(content, indent=2) + "\n").encode(), mode=PRIVATE)
        return hook

    def all(self) -> tuple[Webhook, ...]:
        """All of them, ascending by name.

        Raises:
            IntegrityFailed: a file was changed from outside.
        """
        return tuple(self._read(path) for path in sorted(self._path.glob("*.json")) if not path.name.startswith("."))

    def of(self, name: str) -> Webhook:
        """The webhook of that name.

        Raises:
            ConfigInvalid: there is none.
        """
        for hook in self.all():
            if hook.name == name:
                return hook
        raise ConfigInvalid(f"Expected a webhook, found none called {name!r}; see `fedpeft coordinator webhook ls`.")

    def has(self, hook: Webhook) -> bool:
        """Whether it is still there, and no other of that name.

        Raises:
            IntegrityFailed: a file was changed from outside.
        """
        return hook in self.all()

    def remove(self, name: str) -> None:
        """Tells an address nothing more.

        Raises:
            ConfigInvalid: there is none of that name.
        """
        self.of(name)
        self._file(name, "json").unlink()
        self._file(name, "last").unlink(missing_ok=True)

    def last(self, name: str) -> int | None:
        """The sequence number of the last record that was delivered, or passed over; None: it is not known."""
        try:
            return int(self._file(name, "last").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def delivered(self, name: str, sequence: int) -> None:
        """Notes that everything up to this record was delivered."""
        write_file(self._file(name, "last"), str(sequence).encode(), mode=PRIVATE)

    def expect_no_later(self, newest: int) -> None:
        """Takes back what is noted of records that are not there: a restored log is shorter than what it is of.

        Args:
            newest: the sequence number of the newest audit record.
        """
        for hook in self.all():
            last = self.last(hook.name)
            if last is None or last > newest:
                self.delivered(hook.name, newest)

    def _file(self, name: str, kind: str) -> Path:
        return self._path / f"{name}.{kind}"

    def _read(self, path: Path) -> Webhook:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            events = tuple(AuditEvent(event) for event in content["events"])
            secret = bytes.fromhex(content["secret"])
            return Webhook(name=path.stem, url=content["url"], events=events, secret=secret)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigInvalid) as error:
            raise IntegrityFailed(
                f"Expected a webhook in {path}, found something else; remove the file and add it anew."
            ) from error
