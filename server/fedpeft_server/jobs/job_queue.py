"""Submitted runs: a directory that the command line writes to and the coordinator works through.

::

    HOME/queue/0001.toml   run.toml as submitted
    HOME/queue/0001.json   where it stands (Job); replaced whole
    HOME/queue/0001.stop   a wish to stop it; taken away when it is granted

Submitting works while the coordinator is down; it begins when it is up. Numbers ascend and are never used again.
Whoever changes where a run stands reads it and writes it in one turn, since commands and the coordinator meet here.
"""

import json
import math
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from fedpeft.config.load import parse
from fedpeft.directory_lock import short_turn
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft.files import write_file
from fedpeft_server.jobs.schedule import expect_schedule, next_start, with_another_seed

__all__ = ["PRIORITIES", "Job", "JobQueue", "JobState"]


PRIORITIES = 100
UNUSUAL = ("priority", "group", "without", "start_at", "every_s", "follows")
"""Fields of a job that are written only where they say something."""


class JobState(Enum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submitted run.

    Args:
        number: from 1.
        name: of the run, from its configuration.
        state: where it stands.
        run: the name of its run directory; empty before it began.
        reason: why it failed or was stopped.
        priority: of those that wait for a start, or for devices, the one with the highest goes first.
        group: of the devices that it asks (``fedpeft_server.enrolment.groups``); empty: all.
        without: names of devices that it never asks.
        start_at: Unix seconds before which it does not begin; 0: at once.
        every_s: it is queued again so often (``fedpeft_server.jobs.schedule``); 0: once.
        follows: the number of the run that it repeats; 0: of none.
    """

    number: int
    name: str
    state: JobState = JobState.QUEUED
    run: str = ""
    reason: str = ""
    priority: int = 0
    group: str = ""
    without: tuple[str, ...] = ()
    start_at: int = 0
    every_s: int = 0
    follows: int = 0

    def __post_init__(self) -> None:
        expect_schedule(self.start_at, self.every_s)
        if not -PRIORITIES <= self.priority <= PRIORITIES:
            raise ConfigInvalid(f"Expected a priority in {-PRIORITIES}..{PRIORITIES}, found {self.priority}.")


class JobQueue:
    """The directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ended: dict[str, tuple[tuple[int, int, int], Job]] = {}
        path.mkdir(mode=0o700, exist_ok=True)

    def submit(
        self,
        text: str,
        *,
        source: str,
        priority: int = 0,
        group: str = "",
        without: Sequence[str] = (),
        start_at: int = 0,
        every_s: int = 0,
    ) -> Job:
        """Checks a run.toml and takes it.

        Args:
            priority, group, without, start_at, every_s: see ``Job``.

        Raises:
            ConfigInvalid: it is wrong, or not for a deployment; nothing was submitted.
        """
        config = parse(text, source=source)
        job = Job(
            number=1,
            name=config.run.name,
            priority=priority,
            group=group,
            without=tuple(without),
            start_at=start_at,
            every_s=every_s,
        )
        return self._add(job, text)

    def _add(self, job: Job, text: str) -> Job:
        """Under the next number that is free."""
        number = 1 + max((job.number for job in self.jobs()), default=0)
        while True:
            try:
                os.close(os.open(self._file(number, "toml"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                break
            except FileExistsError:
                number += 1
        write_file(self._file(number, "toml"), text.encode())
        job = replace(job, number=number)
        self.put(job)
        return job

    def jobs(self) -> tuple[Job, ...]:
        """All of them, ascending.

        Raises:
            IntegrityFailed: a file was changed from outside.
        """
        found = [self._read_once(path) for path in self.path.glob("[0-9]*.json")]
        return tuple(sorted(found, key=lambda job: job.number))

    def job(self, name: str) -> Job:
        """The job of that number or run directory.

        Raises:
            ConfigInvalid: there is none.
        """
        for job in self.jobs():
            if name in (str(job.number), job.run):
                return job
        raise ConfigInvalid(f"Expected a submitted run, found none called {name!r}; see `fedpeft coordinator status`.")

    def next(self, *, worked_on: Collection[int] = (), now: float = math.inf) -> Job | None:
        """What to begin now: what was running when the coordinator went down, else the first of the highest priority.

        Args:
            worked_on: numbers of runs that have begun.
            now: Unix seconds.
        """
        due = [job for job in self.jobs() if job.state is JobState.RUNNING or job.start_at <= now]
        open_states = (JobState.RUNNING, JobState.QUEUED)
        waiting = [job for job in due if job.state in open_states and job.number not in worked_on]
        return min(
            waiting, key=lambda job: (job.state is not JobState.RUNNING, -job.priority, job.number), default=None
        )

    def begin(self, *, now: float, worked_on: Collection[int] = ()) -> Job | None:
        """Takes what ``next`` names: it is running from now on. None when there is nothing to do.

        One that repeats has queued the next one before.

        Args:
            now: Unix seconds.
            worked_on: see ``next``.
        """
        with short_turn(self.path):
            job = self.next(worked_on=worked_on, now=now)
            if job is not None:
                if job.every_s and job.state is JobState.QUEUED and self.successor(job) is None:
                    following = ""
                    # A file that was damaged from outside is the end of this run, which says so, and of no coordinator.
                    with suppress(IntegrityFailed, ValueError, KeyError, TypeError, AttributeError):
                        following = with_another_seed(self.text(job))
                    if following:
                        start_at = next_start(job.start_at, job.every_s, now)
                        self._add(replace(job, start_at=start_at, follows=job.number), following)
                job = replace(job, state=JobState.RUNNING)
                self.put(job)
            return job

    def successor(self, job: Job) -> Job | None:
        """The run that repeats this one; None: there is none yet."""
        return next((one for one in self.jobs() if one.follows == job.number), None)

    def text(self, job: Job) -> str:
        """Its run.toml.

        Raises:
            IntegrityFailed: it is no text: the file was changed from outside.
        """
        try:
            return (path := self._file(job.number, "toml")).read_text(encoding="utf-8")
        except ValueError as error:
            raise IntegrityFailed(f"Expected a run.toml in {path}, found {error}; submit it anew.") from error

    def current(self, job: Job) -> Job:
        """The job as it is now.

        Raises:
            IntegrityFailed: its file was changed from outside.
        """
        return self._read(self._file(job.number, "json"))

    def begun(self, job: Job, *, run: str) -> Job:
        """Notes the run directory of a job that is worked on."""
        with short_turn(self.path):
            job = replace(self.current(job), state=JobState.RUNNING, run=run)
            self.put(job)
            return job

    def put(self, job: Job) -> None:
        """Makes a job's state durable; what is as ever is not written, for a coordinator of before that is still up."""
        content = {name: value for name, value in asdict(job).items() if value or name not in UNUSUAL}
        content |= {"state": job.state.value}
        write_file(self._file(job.number, "json"), json.dumps(content).encode())

    def stop(self, job: Job) -> Job:
        """Wishes a running job stopped; stops a queued one. Returns where it stands now.

        Raises:
            ConfigInvalid: it neither waits nor runs any more.
        """
        with short_turn(self.path):
            job = self.current(job)
            if job.state is JobState.QUEUED:
                job = replace(job, state=JobState.STOPPED, reason="stopped before it began")
                self.put(job)
            elif job.state is JobState.RUNNING:
                write_file(self._file(job.number, "stop"), b"")
            else:
                raise ConfigInvalid(f"Expected a run that waits or runs, found run {job.number} {job.state.value}.")
            return job

    def end(self, job: Job) -> None:
        """Makes durable how a job that ran ended; a wish to stop it that came too late goes with it.

        Args:
            job: ``RUNNING`` if it only pauses until the next ``up``; a wish to stop it stays then. Its priority is the
                one that it was given last.
        """
        with short_turn(self.path):
            self.put(replace(job, priority=self.current(job).priority))
            if job.state is not JobState.RUNNING:
                self._file(job.number, "stop").unlink(missing_ok=True)

    def removed(self, job: Job, *, reason: str) -> None:
        """Notes that an ended run has no directory any more; it is not resumed."""
        with short_turn(self.path):
            self.put(replace(self.current(job), state=JobState.REMOVED, run="", reason=reason))

    def resume(self, job: Job) -> Job:
        """Puts a stopped or failed job into the queue again; it goes on from its last commit.

        Raises:
            ConfigInvalid: it is neither.
        """
        with short_turn(self.path):
            job = self.current(job)
            if job.state not in (JobState.STOPPED, JobState.FAILED):
                raise ConfigInvalid(f"Expected a stopped or failed run, found run {job.number} {job.state.value}.")
            job = replace(job, state=JobState.QUEUED, reason="")
            # A wish that a crash left beside a job that had ended would stop the resumed one at once.
            self._file(job.number, "stop").unlink(missing_ok=True)
            self.put(job)
            return job

    def prefer(self, job: Job, priority: int) -> Job:
        """Gives a run that waits or runs another priority; one that runs has it from its next round on.

        Raises:
            ConfigInvalid: no such priority, or the run has ended.
        """
        with short_turn(self.path):
            job = self.current(job)
            if job.state not in (JobState.QUEUED, JobState.RUNNING):
                raise ConfigInvalid(f"Expected a run that waits or runs, found run {job.number} {job.state.value}.")
            job = replace(job, priority=priority)
            self.put(job)
            return job

    def wants_stop(self, job: Job) -> bool:
        """Whether somebody wishes it stopped."""
        return self._file(job.number, "stop").exists()

    def _file(self, number: int, kind: str) -> Path:
        return self.path / f"{number:04d}.{kind}"

    def _read_once(self, path: Path) -> Job:
        """As ``_read``; one that has ended only if it was replaced: schedules leave thousands, often looked at."""
        status = path.stat()
        known, key = self._ended.get(path.name), (status.st_ino, status.st_mtime_ns, status.st_size)
        if known is not None and known[0] == key:
            return known[1]
        job = self._read(path)
        if job.state not in (JobState.QUEUED, JobState.RUNNING):
            self._ended[path.name] = (key, job)
        return job

    def _read(self, path: Path) -> Job:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            without = tuple(map(str, content.get("without", ())))
            return Job(**{**content, "state": JobState(content["state"]), "without": without})
        except (ValueError, TypeError, KeyError, ConfigInvalid) as error:
            raise IntegrityFailed(f"Expected a job in {path}, found {error}; remove it to drop the run.") from error
