"""Who may take part: the enrolled devices, in SQLite, so that the command line and the running coordinator agree.

Every process opens the file itself; each change is one durable transaction and raises ``revision()``, which the
gateway and the services look at, so that a revocation holds from the next request on. The decisions (which token
admits whom) are in ``fedpeft_server.enrolment.admission``; this module keeps what was decided.

Lifecycle: pending -> active -> revoked | left; pending -> denied. A name whose device ended may be enrolled anew,
with new keys: keys that were ever accepted are never accepted for another enrolment.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from fedpeft.errors import IntegrityFailed, NotEnrolled
from fedpeft.files import PRIVATE
from fedpeft.ids import NodeId

__all__ = ["ENDED", "EnrolledDevice", "Registry", "Status", "alike", "open_registry"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO meta VALUES ('revision', 0);
CREATE TABLE IF NOT EXISTS devices (
  name TEXT PRIMARY KEY, organisation TEXT NOT NULL, status TEXT NOT NULL, identity BLOB NOT NULL UNIQUE,
  node_key BLOB NOT NULL UNIQUE, csr BLOB NOT NULL, serial TEXT UNIQUE, certificate BLOB NOT NULL,
  profile TEXT NOT NULL, code TEXT NOT NULL, token_id TEXT NOT NULL, reason TEXT NOT NULL, node_id TEXT UNIQUE,
  since TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS retired_keys (key BLOB PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS labels (identity BLOB PRIMARY KEY, label TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS groups (identity BLOB NOT NULL, name TEXT NOT NULL, PRIMARY KEY (identity, name)) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
  token_id TEXT PRIMARY KEY, mac_key BLOB NOT NULL, expires_utc REAL NOT NULL, uses INTEGER NOT NULL,
  auto_approve INTEGER NOT NULL, organisation TEXT NOT NULL, revoked INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS token_uses (
  token_id TEXT NOT NULL, node_key BLOB NOT NULL, PRIMARY KEY (token_id, node_key)) STRICT;
CREATE TABLE IF NOT EXISTS access_tokens (
  token_id TEXT PRIMARY KEY, secret_sha256 BLOB NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL,
  expires_utc REAL NOT NULL, revoked INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS successors (
  node_key BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, csr BLOB NOT NULL, serial TEXT NOT NULL,
  certificate BLOB NOT NULL) STRICT;
"""
_COLUMNS = (
    "name, organisation, status, identity, node_key, csr, serial, certificate, profile, code, token_id, reason, "
    "node_id, since"
)


class Status(Enum):
    """Where a device stands."""

    PENDING = "pending"
    ACTIVE = "active"
    DENIED = "denied"
    REVOKED = "revoked"
    LEFT = "left"


ENDED = frozenset({Status.DENIED, Status.REVOKED, Status.LEFT})
"""A device in one of these takes no part; its name may be enrolled anew, its keys never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledDevice:
    """One device as the registry knows it.

    Args:
        name: unique in the federation.
        organisation: who is responsible for it; cohorts are counted in these.
        status: only ``ACTIVE`` devices take part.
        identity: Ed25519 public key, 32 bytes, unique.
        node_key: its Flower node key: P-256 public key, PEM SubjectPublicKeyInfo, as Flower's own serialisation.
        csr: its signing request, DER.
        serial: of its current certificate, hex; None before there is one. Any other certificate is not its.
        certificate: PEM; empty before there is one.
        profile: its hardware, ``DeviceProfile.to_json``.
        code: the short code that device and operator compare.
        token_id: of the join token that it came with.
        reason: why it ended; shown to the device.
        node_id: what Flower calls it; None until the coordinator registers ``node_key`` there, and after a rotation.
        since: UTC, ISO 8601: when it reached this status.
    """

    name: str
    organisation: str
    status: Status
    identity: bytes
    node_key: bytes
    csr: bytes
    serial: str | None
    certificate: bytes
    profile: str
    code: str
    token_id: str
    reason: str
    node_id: NodeId | None
    since: str


def open_registry(path: Path, audit: Path) -> "Registry":
    """The registry of a coordinator's home.

    Args:
        path: the SQLite file; made if this home never had one.
        audit: the home's audit log, which is never empty once there was a registry.

    Raises:
        IntegrityFailed: it is damaged, or gone: with it went who was revoked and which keys are retired.
    """
    gone = not path.exists() or path.stat().st_size == 0
    if gone and audit.exists() and audit.stat().st_size > 0:
        raise IntegrityFailed(
            f"Expected the registry {path} that {audit.name} tells of, found none; restore it from a backup. To begin "
            f"anew without any device, move {audit} away."
        )
    return Registry(path)


class Registry:
    """The enrolled devices. Thread-safe; several processes may have it open.

    Args:
        path: the SQLite file; made 0600 when it is not there.

    Raises:
        IntegrityFailed: the file is damaged, or no registry.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=PRIVATE)
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            verdict = self._db.execute("PRAGMA quick_check").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise IntegrityFailed(
                f"Expected a sound registry in {path}, found {error}; restore it from a backup."
            ) from error

    def close(self) -> None:
        """Releases the file."""
        with self._lock:
            self._db.close()

    def revision(self) -> int:
        """Grows with every change that any process makes; reading it costs microseconds."""
        with self._lock:
            return int(self._db.execute("SELECT value FROM meta WHERE key='revision'").fetchone()[0])

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction over everything in the registry, seen by nobody until it is whole; may be nested."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key='revision'")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a SELECT; for ``fedpeft_server.enrolment.join_tokens`` and this module."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def devices(self, status: Status | None = None) -> tuple[EnrolledDevice, ...]:
        """All devices by name, or those of one status."""
        if status is None:
            return self._devices("1 = 1 ORDER BY name")
        return self._devices("status = ? ORDER BY name", status.value)

    def find(self, name: str) -> EnrolledDevice | None:
        """The device of that name, whatever its status."""
        return next(iter(self._devices("name = ?", name)), None)

    def same_name(self, name: str) -> EnrolledDevice | None:
        """The device of that name, or of one that reads the same: upper and lower case and a last dot do not count."""
        return next((one for one in self.devices() if alike(one.name) == alike(name)), self.find(name))

    def organisation(self, name: str) -> str:
        """How an organisation is written here: as the first device wrote it whose organisation reads the same.

        Cohorts are counted in organisations, so ``Clinic-A`` and ``clinic-a `` must not be two.
        """
        tidy = " ".join(name.split())
        return next((one.organisation for one in self.devices() if alike(one.organisation) == alike(tidy)), tidy)

    def device(self, name: str) -> EnrolledDevice:
        """The device of that name, whatever its status.

        Raises:
            NotEnrolled: there is none.
        """
        if (found := self.find(name)) is None:
            raise NotEnrolled(f"Expected an enrolled device, found none named {name!r}; see `clients ls`.")
        return found

    def by_node_key(self, node_key: bytes) -> EnrolledDevice | None:
        """The device with this Flower node key (PEM), whatever its status."""
        return next(iter(self._devices("node_key = ?", node_key)), None)

    def is_retired(self, key: bytes) -> bool:
        """Whether a device that ended, or rotated, had this node or identity key."""
        return bool(self.rows("SELECT 1 FROM retired_keys WHERE key = ?", key))

    def knows_identity(self, identity: bytes) -> bool:
        """Whether any device has, or had, this Ed25519 key."""
        return bool(self._devices("identity = ?", identity)) or self.is_retired(identity)

    def set_node(self, name: str, node: NodeId | None) -> None:
        """Notes what Flower calls the device."""
        with self.change() as db:
            db.execute("UPDATE devices SET node_id=? WHERE name=?", (None if node is None else str(node), name))

    def put(self, device: EnrolledDevice) -> None:
        """Writes a device, over the one of the same name; keys that it no longer has are retired for good."""
        with self.change() as db:
            for old in self._devices("name = ?", device.name):
                gone = {old.node_key, old.identity} - {device.node_key, device.identity}
                db.executemany("INSERT OR IGNORE INTO retired_keys VALUES (?)", [(key,) for key in gone])
            row = (
                device.name, device.organisation, device.status.value, device.identity, device.node_key, device.csr,
                device.serial, device.certificate, device.profile, device.code, device.token_id, device.reason,
                None if device.node_id is None else str(device.node_id), device.since,
            )  # fmt: skip
            db.execute("DELETE FROM devices WHERE name=?", (device.name,))
            db.execute(f"INSERT INTO devices ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def delete(self, device: EnrolledDevice) -> None:
        """Removes a device's row; its keys are retired for good."""
        with self.change() as db:
            keys = [(device.node_key,), (device.identity,)]
            db.executemany("INSERT OR IGNORE INTO retired_keys VALUES (?)", keys)
            db.execute("DELETE FROM successors WHERE name=?", (device.name,))
            for table in ("labels", "groups"):
                db.execute(f"DELETE FROM {table} WHERE identity=?", (device.identity,))  # noqa: S608
            db.execute("DELETE FROM devices WHERE name=?", (device.name,))

    def put_successor(self, name: str, node_key: bytes, csr: bytes, serial: str, certificate: bytes) -> None:
        """Notes the key that a device wants to go on with; the present one stays until ``take_successor``."""
        with self.change() as db:
            db.execute("DELETE FROM successors WHERE name = ?", (name,))
            db.execute("INSERT INTO successors VALUES (?, ?, ?, ?, ?)", (node_key, name, csr, serial, certificate))

    def take_successor(self, node_key: bytes) -> EnrolledDevice | None:
        """The device whose noted key this is, from now on with that key; None when nobody noted it."""
        with self.change() as db:
            row = db.execute("SELECT name, csr, serial, certificate FROM successors WHERE node_key = ?", (node_key,))
            if (found := row.fetchone()) is None:
                return None
            name, csr, serial, certificate = found
            db.execute("DELETE FROM successors WHERE name = ?", (name,))
            now = replace(
                self.device(name), node_key=node_key, csr=csr, serial=serial, certificate=certificate, node_id=None
            )
            self.put(now)
            return now

    def _devices(self, where: str, *values: object) -> tuple[EnrolledDevice, ...]:
        # Safe: ``where`` is written in this module; what comes from outside is bound.
        rows = self.rows(f"SELECT {_COLUMNS} FROM devices WHERE {where}", *values)  # noqa: S608
        return tuple(_device(row) for row in rows)


def alike(name: str) -> str:
    """The same for names that read the same: upper and lower case, white space and a last dot do not count."""
    return "".join(name.casefold().split()).rstrip(".")


def _device(row: tuple[object, ...]) -> EnrolledDevice:
    def text(index: int) -> str:
        return str(row[index])

    def blob(index: int) -> bytes:
        value = row[index]
        if not isinstance(value, bytes):  # the columns are STRICT: only a damaged file gets here
            raise IntegrityFailed(f"Expected bytes in column {index} of the registry; restore it from a backup.")
        return value

    return EnrolledDevice(
        name=text(0),
        organisation=text(1),
        status=Status(text(2)),
        identity=blob(3),
        node_key=blob(4),
        csr=blob(5),
        serial=None if row[6] is None else text(6),
        certificate=blob(7),
        profile=text(8),
        code=text(9),
        token_id=text(10),
        reason=text(11),
        node_id=None if row[12] is None else NodeId(int(text(12))),
        since=text(13),
    )
