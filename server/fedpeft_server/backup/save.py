"""Writing a backup, while the coordinator runs or not.

The file is 0600: it holds the authority's key and the coordinator's. The registry is copied by SQLite's own backup, the
audit log and the journals up to their last whole line, and each run until its last commit is whole in the copy. A round
that is being opened is in the backup of a coordinator that is down, because only so it is summed once. In that of one
that runs it is not: its runs do not go on, and its masked sums have no business in a file that outlives them.
"""

import importlib.metadata
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fedpeft.clock import Clock
from fedpeft.directory_lock import holder
from fedpeft.errors import IntegrityFailed, ResourceMissing
from fedpeft.files import PRIVATE, expect_folder, sync
from fedpeft_server.backup.archive import Archive, Backup
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.enrolment.registry import open_registry
from fedpeft_server.home import SCHEMA, CoordinatorHome
from fedpeft_server.run.journal import remove_folder
from fedpeft_server.run.run_view import verify_run

__all__ = ["back_up"]

TRIES = 8
"""At copying a run whose coordinator commits and prunes meanwhile."""
LEFT_OUT = frozenset({"objects", "logs", "runs", "bases", "registry.sqlite", "audit.jsonl", "run.lock", "removed"})
"""Of the home's entries: what is emptied at each start, and what is copied in its own way."""


def back_up(home: CoordinatorHome, target: Path, *, clock: Clock, bases: bool = True) -> tuple[Path, Backup]:
    """Writes a home into one file.

    Args:
        home: initialised; its coordinator may run.
        target: a file that does not exist, or a folder, in which the file is named after the time.
        clock: for the time.
        bases: whether base models are in it; without them they are built or fetched again, by the same digest.

    Raises:
        ResourceMissing: the file is there already, or there is no room.
        IntegrityFailed: something in the home is damaged: it is not backed up as if it were whole.
    """
    home.settings()
    now = clock.utc()
    path = target / f"fedpeft-{now:%Y%m%dT%H%M%SZ}.tar" if target.is_dir() else target
    if path.exists():
        raise ResourceMissing(f"Expected a new file for the backup, found {path}; name another.")
    expect_folder(path.parent)
    running = holder(home.path) is not None
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE), "wb") as file:
            archive = Archive(file)
            head = _add_home(archive, home, path.parent, clock, bases=bases, running=running)
            record = Backup(
                at=now.isoformat(timespec="seconds"),
                fedpeft=importlib.metadata.version("fedpeft"),
                schema=SCHEMA,
                running=running or holder(home.path) is not None,
                audit_head=head,
                files=archive.digests,
            )
            archive.end(record.to_json().encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResourceMissing(f"Expected to write a backup to {path}, found: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    AuditLog(home.audit, clock).append(
        AuditEvent.BACKED_UP, actor="operator", subject=path.name, detail={"running": int(record.running)}
    )
    return path, record


def _add_home(
    archive: Archive, home: CoordinatorHome, beside: Path, clock: Clock, *, bases: bool, running: bool
) -> str:
    """Everything of a home; returns the digest of the last audit record in it."""
    with tempfile.TemporaryDirectory(prefix=".fedpeft-backup-", dir=beside) as folder:
        staging = Path(folder)
        open_registry(home.registry, home.audit).close()  # a home that was made and never used has none yet
        # The registry before the audit log: whatever is decided in it has its record in a log that is newer.
        with (
            closing(sqlite3.connect(f"file:{home.registry}?mode=ro", uri=True, timeout=10.0)) as source,
            closing(sqlite3.connect(staging / "registry.sqlite")) as target,
        ):
            source.backup(target)
        archive.add("registry.sqlite", staging / "registry.sqlite")
        audit = _whole_lines(home.audit)
        (staging / "audit.jsonl").write_bytes(audit)
        head = AuditLog(staging / "audit.jsonl", clock).head()
        archive.add_bytes("audit.jsonl", audit)
        for path in _files(home.path, skip=LEFT_OUT):
            archive.add_bytes(path.relative_to(home.path).as_posix(), path.read_bytes())
        for run in sorted(home.runs.glob("*/manifest.json")):
            copy = _copied_run(run.parent, staging / "run", pending=not running)
            for path in _files(copy):
                archive.add(f"runs/{run.parent.name}/{path.relative_to(copy).as_posix()}", path)
            remove_folder(copy)
    for path in _files(home.bases) if bases else ():
        archive.add(f"bases/{path.relative_to(home.bases).as_posix()}", path)
    return head


def _copied_run(run: Path, copy: Path, *, pending: bool) -> Path:
    """A copy of a run directory in which the last commit is whole, though rounds may be committed meanwhile."""
    problems, skip = "", {"metrics.jsonl", "events.jsonl", "run.lock"} | (set() if pending else {"pending"})
    for _ in range(TRIES):
        remove_folder(copy)
        copy.mkdir()
        try:
            for name in ("metrics.jsonl", "events.jsonl"):  # first: what they name is there, or was pruned since
                (copy / name).write_bytes(_whole_lines(run / name))
            for path in _files(run, skip=frozenset(skip)):
                target = copy / path.relative_to(run)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        except FileNotFoundError as error:
            problems = str(error)
            continue
        found = verify_run(copy)
        if not found:
            return copy
        problems = "; ".join(map(str, found))
    raise IntegrityFailed(f"Expected {run} to be whole, found {problems}; see `fedpeft runs verify {run}`.")


def _whole_lines(path: Path) -> bytes:
    """What was appended so far, without a line that is being written."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _files(folder: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Regular files below a folder, in order; no temporary ones, none that a link leads to."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] in skip or any(part.startswith(".") for part in parts) or path.name.endswith(("-wal", "-shm")):
            continue
        if path.is_file() and not path.is_symlink():
            yield path
