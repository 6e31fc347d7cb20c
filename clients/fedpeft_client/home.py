"""The device's home: its keys, what enrolment gave it, its site's own rules, its memory between rounds.

::

    HOME/schema.json          the form of all this (fedpeft.home_schema)
    HOME/device.json          who it is and where its coordinator is (Enrolment); written last by enrolment
    HOME/keys/device.key      P-256: Flower's node key and the key of the mTLS certificate; made here, stays here
    HOME/keys/identity.seed   Ed25519: signs in the secure sum; made here, stays here
    HOME/keys/device.crt      the certificate of device.key, from the coordinator's authority (30 days)
    HOME/keys/ca.crt          that authority, pinned by the join token
    HOME/join.token           only while the operator has not approved
    HOME/site.toml            the site's rules; the site's to edit, never the coordinator's
    HOME/adapters/            trained adapters that were fetched, one folder per run
    HOME/bases/               base-model artifacts by content; `join --cache DIR` shares another directory
    HOME/troubles.jsonl       what went wrong here, with its cause; nobody else hears of it
    HOME/runs/                what each run asked for, what its owner said, and what left (SiteRuns)
    HOME/directory.json       the other devices as met in rounds, authenticated under the identity
    HOME/state/               held blocks, the open round
    HOME/state/ledger/        what this device has signed in the secure sum, made by enrolment; gone, it is a loss

Directories are 0700 and secrets 0600.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fedpeft.errors import IntegrityFailed, NotEnrolled
from fedpeft.files import PRIVATE, expanded, write_file
from fedpeft.home_schema import expect_schema, keep_schema
from fedpeft.secagg.primitives import IdentityKey

__all__ = ["SCHEMA", "DeviceHome", "Enrolment", "default_device_home"]

SCHEMA = 1
"""Of the home's files; see ``fedpeft.home_schema``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What the coordinator said when it accepted this device.

    Args:
        device: the device's name in the federation.
        organisation: who is responsible for it; cohorts are counted in these.
        host: the coordinator's name, as in its certificate.
        fleet_port: HTTPS, Flower's Fleet protocol.
        service_port: gRPC with this device's certificate: base, wake-ups, renewal.
        coordinator_key: the coordinator's Ed25519 public key, 64 hex digits: signs the terms of every round.
        ca_fingerprint: SHA-256 of the authority's certificate, hex; the pin of the join token.
        bases: where base artifacts are kept; empty: in the home.
        left: whether the device left or was put out, and why; empty: it is in.
    """

    device: str
    organisation: str
    host: str
    fleet_port: int
    service_port: int
    coordinator_key: str
    ca_fingerprint: str
    bases: str = ""
    left: str = ""

    @property
    def fleet_url(self) -> str:
        """Where Flower's Fleet protocol is spoken, e.g. ``https://fed.example:8443``."""
        return f"https://{_literal(self.host)}:{self.fleet_port}"

    @property
    def service_target(self) -> str:
        """The gRPC service's address, e.g. ``fed.example:8444``."""
        return f"{_literal(self.host)}:{self.service_port}"


def _literal(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def default_device_home() -> Path:
    """``$FEDPEFT_HOME``, or ``~/.local/share/fedpeft/device``."""
    home = os.environ.get("FEDPEFT_HOME")
    return expanded(home) if home else Path.home() / ".local/share/fedpeft/device"


class DeviceHome:
    """Paths in a device's home, and what enrolment wrote there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.enrolment_file = path / "device.json"
        self.keys = path / "keys"
        self.device_key, self.device_certificate = self.keys / "device.key", self.keys / "device.crt"
        self.ca_certificate = self.keys / "ca.crt"
        self.identity_seed = self.keys / "identity.seed"
        self.token = path / "join.token"
        self.site = path / "site.toml"
        self.directory = path / "directory.json"
        self.state = path / "state"
        self.ledger = self.state / "ledger"
        self.troubles = path / "troubles.jsonl"
        self.runs = path / "runs"

    @property
    def is_enrolled(self) -> bool:
        """Whether enrolment finished here: device.json is written last."""
        return self.enrolment_file.is_file()

    def enrolment(self) -> Enrolment:
        """What the coordinator said.

        Raises:
            NotEnrolled: enrolment was not finished here, or the device left or was revoked.
            IntegrityFailed: device.json was damaged, or the home was written by a later version.
        """
        enrolment = self.last_enrolment()
        if enrolment.left:
            raise NotEnrolled(
                f"Expected {enrolment.device} to be enrolled at {enrolment.host}, found that {enrolment.left}; "
                "ask its operator for a new token and run `fedpeft client join TOKEN`."
            )
        return enrolment

    def last_enrolment(self) -> Enrolment:
        """As ``enrolment``, even when the device is not in any more."""
        expect_schema(self.path, SCHEMA)
        try:
            text = self.enrolment_file.read_text(encoding="utf-8")
        except OSError as error:
            hint = "wait for the operator's approval" if self.token.is_file() else "run `fedpeft client join TOKEN`"
            raise NotEnrolled(f"Expected an enrolled device in {self.path}, found none; {hint}.") from error
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or set(content) != {field.name for field in fields(Enrolment)}:
                raise ValueError("other keys")
            if not all(type(content[name]) is (int if name.endswith("_port") else str) for name in content):
                raise ValueError("a value of another type")
            return Enrolment(**content)
        except ValueError as error:
            raise IntegrityFailed(
                f"Expected {self.enrolment_file} as enrolment wrote it, found {error}; restore it, or join "
                "again with a new token."
            ) from error

    def write_enrolment(self, enrolment: Enrolment) -> None:
        """The last step of enrolment."""
        keep_schema(self.path, SCHEMA)
        write_file(self.enrolment_file, (json.dumps(asdict(enrolment), indent=2) + "\n").encode(), mode=PRIVATE)

    def bases(self) -> Path:
        """Where base artifacts are kept: in the home, or in the cache that `join --cache` named."""
        chosen = self.last_enrolment().bases if self.is_enrolled else ""
        return Path(chosen) if chosen else self.path / "bases"

    def identity(self) -> IdentityKey:
        """The device's key in the secure sum."""
        try:
            return IdentityKey.from_bytes(self.identity_seed.read_bytes())
        except OSError as error:
            raise NotEnrolled(
                f"Expected the device's identity in {self.identity_seed}, found {error.strerror}; join again "
                "with a new token."
            ) from error
