"""Threads for virtual devices, where a deadline ends the work and not only the waiting.

A thread cannot be stopped. What can be: its claim. A task that its caller gave up no longer counts among those that
run at once, one that has not begun never begins, and a device that is still at work gets nothing new. So one device
that hangs costs its own answers and no other's. The threads are daemons, so one that hangs does not hold the process;
for the others its end waits: a thread that Python ends in the middle of torch's native code aborts the process.
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["DevicePool"]

Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class _Task(Generic[Answer]):
    device: int
    work: Callable[[], Answer]
    done: bool = False
    answer: Answer | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self.thread is not None


class DevicePool(Generic[Answer]):
    """Runs at most so many devices at once, and of each device one task.

    Args:
        workers: how many at once.
        busy: the answer for a device that is still at work on a task that was given up.
    """

    def __init__(self, workers: int, *, busy: Callable[[str], Answer]) -> None:
        self._workers, self._busy = workers, busy
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task[Answer]] = {}
        self._waiting: deque[str] = deque()
        self._counted: set[str] = set()  # started, not done, not given up
        self._at_work: set[int] = set()  # devices whose thread has not ended, given up or not
        self._unfinished: set[threading.Thread] = set()  # what the process's end waits for
        atexit.register(_join, self._unfinished)

    def submit(self, task_id: str, device: int, work: Callable[[], Answer]) -> None:
        """Run ``work`` for a device as soon as there is a place."""
        with self._lock:
            self._tasks[task_id] = _Task(device, work)
            self._waiting.append(task_id)
            self._start_some()

    def ready(self, task_ids: Iterable[str]) -> list[Answer]:
        """The answers that are there, each once.

        Raises:
            BaseException: whatever a task raised.
        """
        with self._lock:
            done = [
                self._tasks.pop(task_id) for task_id in task_ids if task_id in self._tasks and self._tasks[task_id].done
            ]
        answers = []
        for task in done:
            if task.error is not None:
                raise task.error
            answers.append(task.answer)
        return answers  # type: ignore[return-value]  # of a task that is done without an error

    def begun(self, task_ids: Iterable[str]) -> list[str]:
        """Those of these tasks that are at work or done."""
        with self._lock:
            return [
                one for one in task_ids if (task := self._tasks.get(one)) is not None and (task.started or task.done)
            ]

    def give_up(self, task_ids: Iterable[str], *, late: bool) -> None:
        """Nobody waits for these any more: those that wait never begin, those that run no longer take a place.

        Args:
            task_ids: of any tasks.
            late: their deadline has passed: they may hang, and the process's end does not wait for them either.
        """
        with self._lock:
            for task_id in task_ids:
                task = self._tasks.pop(task_id, None)
                self._counted.discard(task_id)
                if late and task is not None and task.thread is not None:
                    self._unfinished.discard(task.thread)
            self._start_some()

    def close(self) -> None:
        """Start nothing more."""
        with self._lock:
            self._waiting.clear()

    def _start_some(self) -> None:
        """Under the lock: start what there is a place for; answer for devices that are still at work."""
        for task_id in [one for one in self._waiting if one in self._tasks]:
            task = self._tasks[task_id]
            running = any(self._tasks[one].device == task.device for one in self._counted if one in self._tasks)
            if task.device in self._at_work and not running:  # given up, and still at it
                task.done, task.answer = True, self._busy(task_id)
            elif task.device not in self._at_work and len(self._counted) < self._workers:
                task.thread = threading.Thread(
                    target=self._run, args=(task_id, task), name=f"device-{task.device}", daemon=True
                )
                self._counted.add(task_id)
                self._at_work.add(task.device)
                self._unfinished.add(task.thread)
                task.thread.start()
        self._waiting = deque(
            one
            for one in self._waiting
            if one in self._tasks and not (self._tasks[one].started or self._tasks[one].done)
        )

    def _run(self, task_id: str, task: _Task[Answer]) -> None:
        try:
            task.answer = task.work()
        except BaseException as error:  # it belongs to whoever asks for the answer
            task.error = error
        with self._lock:
            task.done = True
            self._counted.discard(task_id)
            self._at_work.discard(task.device)
            self._unfinished.discard(threading.current_thread())
            self._start_some()


def _join(threads: Collection[threading.Thread]) -> None:
    """Waits for devices at work, at the process's end."""
    for thread in list(threads):
        thread.join()
