"""How long ended runs stay: their directories are removed whole, the submission and the audit log stay.

A run's directory has its states, its adapters, what it measured and its privacy statement: whoever needs one of these
longer copies it before. What must not go is not in there: the audit log, the registry, the authority's keys. A removed
run is moved to ``HOME/removed`` first, noted there as removed, and then deleted; what a crash left in between is
finished by the next call.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpeft.clock import Clock
from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
from fedpeft_server.home import CoordinatorHome
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_server.run.journal import remove_folder

__all__ = ["OldRun", "old_runs", "remove_old_runs"]

ENDED = (JobState.FINISHED, JobState.FAILED, JobState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldRun:
    """A run that may go.

    Args:
        job: as it was submitted; ended.
        ended: Unix seconds of the last change to its files.
        size_bytes: of its directory.
    """

    job: Job
    ended: float
    size_bytes: int


def old_runs(home: CoordinatorHome, queue: JobQueue, *, older_s: float, now: float) -> Iterator[OldRun]:
    """Ended runs in which nothing has changed for so long, ascending by number."""
    for job in queue.jobs():
        folder = home.runs / job.run
        if job.state not in ENDED or not job.run or not folder.is_dir():
            continue
        found = [path.lstat() for path in (folder, *folder.rglob("*"))]
        ended = max(one.st_mtime for one in found)
        if now - ended >= older_s:
            yield OldRun(job=job, ended=ended, size_bytes=sum(one.st_size for one in found))


def remove_old_runs(
    home: CoordinatorHome, queue: JobQueue, audit: AuditLog, clock: Clock, *, older_s: float, by: str
) -> tuple[OldRun, ...]:
    """Removes what ``old_runs`` finds; returns it."""
    gone = home.path / "removed"
    _finish(gone, queue, clock)
    found = tuple(old_runs(home, queue, older_s=older_s, now=clock.utc().timestamp()))
    for one in found:
        gone.mkdir(mode=0o700, exist_ok=True)
        detail: dict[str, str | int | float] = {"number": one.job.number, "run": one.job.run, "bytes": one.size_bytes}
        audit.append(AuditEvent.RUN_REMOVED, actor=by, subject=one.job.name, detail=detail)
        (home.runs / one.job.run).rename(gone / one.job.run)
        _finish(gone, queue, clock)
    return found


def _finish(gone: Path, queue: JobQueue, clock: Clock) -> None:
    for folder in sorted(gone.iterdir()) if gone.is_dir() else ():
        for job in queue.jobs():
            if job.run == folder.name:
                queue.removed(job, reason=f"{folder.name} was removed on {clock.utc():%Y-%m-%d}")
        remove_folder(folder)
