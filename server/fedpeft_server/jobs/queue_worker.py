"""Works through the queue of submitted runs, on several of them at once, each on a thread of its own."""

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from fedpeft_server.jobs.disk_space import DiskFull, expect_room, is_full, room_needed
from fedpeft_server.jobs.job_queue import Job
from fedpeft_server.jobs.job_runner import JobContext, JobRunner

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
        self.trouble = ""
        """Why nothing goes on; empty while it does."""

    @property
    def now(self) -> str:
        """What is being done or waited for, run by run; empty while there is nothing to do."""
        return self.trouble or "; ".join(text for _, text in sorted(self._now.copy().items()))

    def work(self) -> None:
        """Returns once ``stopping`` is set and every run has paused or ended.

        Raises:
            DiskFull: the disk was full when it was told to stop.
        """
        at_work: dict[int, Future[None]] = {}
        with ThreadPoolExecutor(self._at_once, thread_name_prefix="run") as threads:
            try:
                while not self._stopping.is_set():
                    for number in [number for number, future in at_work.items() if future.done()]:
                        at_work.pop(number).result()
                    job = self._begin(at_work) if len(at_work) < self._at_once else None
                    if job is None:
                        self._stopping.wait(LOOK_S)
                    else:
                        at_work[job.number] = threads.submit(self._work_on, job)
            except BaseException:
                self._stop()  # the other runs end after their round, and go on with the next `up`
                raise
        for future in at_work.values():
            future.result()

    def _begin(self, at_work: Collection[int]) -> Job | None:
        try:
            return self._site.queue.begin(worked_on=at_work)
        except OSError as error:
            if not is_full(error):
                raise
            self._wait_for_room(None, error)
            return None

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
                    self._wait_for_room(job, error)
                    job = self._site.queue.job(str(job.number))
        finally:
            self._now.pop(job.number, None)

    def _tell(self, number: int, text: str) -> None:
        self._now[number] = text
        self._site.tell(text)

    def _wait_for_room(self, job: Job | None, error: DiskFull | OSError) -> None:
        """Returns when there is room again."""
        home = self._site.home
        run = home.runs / self._site.queue.job(str(job.number)).run if job and job.run else None
        self.trouble = f"{error}"
        _log.error("%s", error)
        while self.trouble:
            if self._stopping.wait(ROOM_LOOK_S):
                raise DiskFull(self.trouble) from error
            try:
                expect_room(home.path, room_needed(run))
                self.trouble = ""
            except DiskFull as still:
                self.trouble = str(still)
        self._site.tell("there is room on the disk again")
