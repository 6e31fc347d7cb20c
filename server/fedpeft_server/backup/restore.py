"""Making a home of a backup, and what such a home must not do again (docs/adr/0031-backup.md).

It is older than what its devices have seen. So:
- no run of it goes on: a round after it may have been summed, and its budget was spent in a ledger that is gone;
- unless the operator says that nothing has happened since, which a backup of a running coordinator can never show;
- no queued run begins by itself, and no join token of it admits anybody.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from fedpeft.clock import Clock
from fedpeft.errors import DataInvalid, ResourceMissing
from fedpeft.files import sync, write_file
from fedpeft_server.backup.archive import Backup, unpacked
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_server.run.journal import remove_folder
from fedpeft_server.run.run_directory import RESTORED
from fedpeft_server.webhooks.hooks import Webhooks

__all__ = ["restore"]


def restore(archive: Path, where: Path, *, clock: Clock, nothing_since: bool = False) -> tuple[Backup, int]:
    """Makes a home of a backup; what is in it, and how many runs of it ended thereby.

    Args:
        archive: as ``back_up`` wrote it.
        where: no home yet.
        clock: for the audit record.
        nothing_since: the operator's word that the home it was taken of has not been up since; then its runs go on.

    Raises:
        IntegrityFailed: the file was changed, is cut off, or is of a later version. Nothing was made.
        ResourceMissing: there is something at ``where``.
        DataInvalid: it is no backup, or its coordinator ran while it was taken: something has happened since.
    """
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        raise ResourceMissing(f"Expected nothing at {where}, found a home or a file; move it away, or name another.")
    where.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{where.name}.restoring-", dir=where.parent))
    try:
        record = unpacked(archive, staging)
        if nothing_since and record.running:
            raise DataInvalid(
                "Expected a backup of a coordinator that was down, found one that ran while it was taken: later "
                "rounds may exist. Restore without --nothing-since; its runs can then be read, but do not continue."
            )
        home = CoordinatorHome(staging)
        home.settings()
        ended = 0 if nothing_since else _put_to_rest(home, record)
        _revoke_tokens(home)
        home.upgrade()
        audit = AuditLog(home.audit, clock)
        # Beside a coordinator that runs, how far a webhook has come is copied after the log, and may be further.
        Webhooks(home.webhooks).expect_no_later(audit.newest())
        detail: dict[str, str | int | float] = {
            "of": record.at,
            "head": record.audit_head,
            "nothing_since": int(nothing_since),
            "ended": ended,
        }
        audit.append(AuditEvent.RESTORED, actor="operator", subject=archive.name, detail=detail)
        if where.exists():
            where.rmdir()
        staging.replace(where)
        sync(where.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return record, ended


def _put_to_rest(home: CoordinatorHome, record: Backup) -> int:
    """No run of the home goes on, and none begins by itself; how many that ended or held back."""
    for run in home.runs.glob("*/"):
        remove_folder(run / "pending")
        write_file(run / RESTORED, json.dumps({"of": record.at}).encode())
    queue, ended = JobQueue(home.path / "queue"), 0
    for job in queue.jobs():
        if job.state not in (JobState.FINISHED, JobState.REMOVED):
            queue.put(_rested(job, record))
            ended += 1
    return ended


def _rested(job: Job, record: Backup) -> Job:
    if not job.run:
        why = f"held back: restored from a backup of {record.at}, and it may have been worked on since"
        return replace(job, state=JobState.STOPPED, reason=f"{why}; `resume` queues it")
    why = f"restored from a backup of {record.at}: later rounds may have been summed, so it does not go on"
    return replace(job, state=JobState.FAILED, reason=f"{why}; submit it anew")


def _revoke_tokens(home: CoordinatorHome) -> None:
    registry = Registry(home.registry)
    with registry.change() as db:
        db.execute("UPDATE tokens SET revoked = 1")
        db.execute("UPDATE access_tokens SET revoked = 1")
    registry.close()
