"""Works through the queue of submitted runs, on several of them at once, each on a thread of its own."""

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from fedpeft_server.enrolment.audit_log import AuditEvent
from fedpeft_server.jobs.disk_space import DiskFull, expect_room, is_full, room_needed
from fedpeft_server.jobs.job_queue import Job, JobState
from fedpeft_server.jobs.job_runner import JobContext, JobRunner
from fedpeft_server.run.pending import is_pending

__all__ = ["QueueWorker"]

LOOK_S = 0.2
"""Between two looks at the queue."""
ROOM_LOOK_S = 2.0
"""Between two looks whether a full disk has room again."""

_log = logging.getLogger(__name__)


class QueueWorker:
    """One a coordinator.

    Args:
        site: what the runs need; what it tells is said of the run that it is about.
        at_once: so many runs.
        stopping: set when no run is to begin any more.
        stop: asks those that run to end, and sets ``stopping``; called when one of them fails as none may.
    """

    def __init__(self, site: JobContext, *, at_once: int, stopping: threading.Event, stop: Callable[[], None]) -> None:
        self._site, self._at_once, self._stopping, self._stop = site, at_once, stopping, stop
        self._now: dict[int, str] = {}
        self._lacks: dict[int, str] = {}
        self._repeated: set[int] = set()

    @property
    def trouble(self) -> str:
        """What the disk has no room for; empty while it has."""
        return next(iter(self._lacks.copy().values()), "")

    @property
    def now(self) -> str:
        """What is being done or waited for, run by run; empty while there is nothing to do."""
        said = self._now.copy() | self._lacks.copy()
        return "; ".join(text for _, text in sorted(said.items()))

    def work(self) -> None:
        """Returns once ``stopping`` is set and every run has paused or ended.

        Raises:
            DiskFull: the disk was full when it was told to stop.
        """
        at_work: dict[int, Future[None]] = {}
        opened = [job for job in self._site.queue.jobs() if job.state is JobState.RUNNING and self._has_opened(job)]
        for job in opened:
            self._site.turns.expect(job.number)
        with ThreadPoolExecutor(max(self._at_once, len(opened)), thread_name_prefix="run") as threads:
            for job in opened:
                at_work[job.number] = threads.submit(self._work_on, job)
            try:
                while not self._stopping.is_set():
                    for number in [number for number, future in at_work.items() if future.done()]:
                        at_work.pop(number).result()
                    begun = self._begin(at_work) if len(at_work) < self._at_once else None
                    if begun is None:
                        self._stopping.wait(LOOK_S)
                    else:
                        at_work[begun.number] = threads.submit(self._work_on, begun)
            except BaseException:
                self._stop()  # the other runs end after their round, and go on with the next `up`
                raise
        for future in at_work.values():
            future.result()

    def _begin(self, at_work: Collection[int]) -> Job | None:
        try:
            queue = self._site.queue
            job = queue.begin(worked_on=at_work, now=self._site.clock.utc().timestamp())
            if job is not None and not job.run and (following := queue.successor(job)) is not None:
                self._note(job, following)  # it begins for the first time
            return job
        except OSError as error:
            if not is_full(error):
                raise
            self._wait_for_room(None, error)
            return None

    def _note(self, job: Job, following: Job) -> None:
        """Who submitted the next repetition, and when it is to begin."""
        if job.number in self._repeated:
            return
        self._repeated.add(job.number)
        detail: dict[str, str | int | float] = {"number": following.number, "repeats": job.number}
        detail["start_at"] = following.start_at
        self._site.audit.append(AuditEvent.RUN_SUBMITTED, actor="coordinator", subject=following.name, detail=detail)

    def _work_on(self, job: Job) -> None:
        """A run to its end, or until the coordinator stops."""
        runner = JobRunner(replace(self._site, tell=partial(self._tell, job.number)))
        try:
            while not self._stopping.is_set():
                try:
                    runner.work(job)
                    return
                except (DiskFull, OSError) as error:
                    if isinstance(error, OSError) and not is_full(error):
                        raise
                    if self._has_opened(job := self._site.queue.current(job)):
                        self._site.turns.expect(job.number)
                    self._wait_for_room(job, error)
        finally:
            self._now.pop(job.number, None)
            self._site.turns.expect_no_more(job.number)

    def _has_opened(self, job: Job) -> bool:
        """Whether a round of the run was being opened when it was left: its devices keep only their last round."""
        return bool(job.run) and is_pending(self._site.home.runs / job.run)

    def _tell(self, number: int, text: str) -> None:
        self._now[number] = text
        self._site.tell(text)

    def _wait_for_room(self, job: Job | None, error: DiskFull | OSError) -> None:
        """Returns when there is room again."""
        home, number = self._site.home, job.number if job else 0
        run = home.runs / job.run if job and job.run else None
        self._lacks[number] = f"{error}"
        _log.error("%s", error)
        try:
            while True:
                if self._stopping.wait(ROOM_LOOK_S):
                    raise DiskFull(self._lacks[number]) from error
                try:
                    expect_room(home.path, room_needed(run))
                    break
                except DiskFull as still:
                    self._lacks[number] = str(still)
        finally:
            del self._lacks[number]
        self._site.tell("there is room on the disk again")
