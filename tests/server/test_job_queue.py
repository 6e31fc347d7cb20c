"""The queue of submitted runs."""

import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.cli.coordinator.token import moment
from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_server.jobs.schedule import LATEST, LONGEST_EVERY_S, next_start

RUN = """
[run]
name = "notes"
[base]
model = "sha256:{digest}"
[task]
kind = "causal-lm"
[data]
source = "notes.jsonl"
partition = {{ by = "column", column = "site" }}
[adapter]
lora = {{}}
[[device]]
clients = ["*"]
methods = ["lora"]
""".format(digest="0" * 64)


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "queue")


def test_a_submitted_run_is_there_for_the_next_process(queue: JobQueue) -> None:
    job = queue.submit(RUN, source="run.toml")
    assert JobQueue(queue.path).jobs() == (job,)
    assert (job.number, job.name, job.state) == (1, "notes", JobState.QUEUED)
    assert queue.text(job) == RUN


def test_a_run_that_is_not_for_a_deployment_is_refused_when_it_is_submitted(queue: JobQueue) -> None:
    with pytest.raises(ConfigInvalid, match=r"secagg\.mode"):
        queue.submit(RUN + '[secagg]\nmode = "off"\n', source="run.toml")
    assert queue.jobs() == ()


def test_what_was_running_goes_on_before_what_waits(queue: JobQueue) -> None:
    first, second = queue.submit(RUN, source="a"), queue.submit(RUN, source="b")
    assert queue.next() == first
    running = replace(second, state=JobState.RUNNING, run="some-run")
    queue.put(running)
    assert queue.next() == running
    for job in (first, running):
        queue.put(replace(job, state=JobState.FINISHED))
    assert queue.next() is None


def running(queue: JobQueue) -> Job:
    queue.submit(RUN, source="a")
    job = queue.begin(now=0.0)
    assert job is not None
    assert job.state is JobState.RUNNING
    return job


def test_a_wish_to_stop_waits_for_the_coordinator_and_goes_with_the_run(queue: JobQueue) -> None:
    job = running(queue)
    assert not queue.wants_stop(job)
    queue.stop(job)
    assert JobQueue(queue.path).wants_stop(job)
    queue.end(replace(job, state=JobState.STOPPED))
    assert not queue.wants_stop(job)


def test_a_wish_to_stop_outlives_a_coordinator_that_goes_down_before_it_heard(queue: JobQueue) -> None:
    job = running(queue)
    queue.stop(job)
    queue.end(job)  # SIGTERM came first: it is still running, and goes on with the next `up`
    assert queue.wants_stop(job)


def test_a_stop_that_came_too_late_does_not_stop_the_resumed_run(queue: JobQueue) -> None:
    job = running(queue)
    queue.stop(job)
    queue.end(replace(job, state=JobState.FAILED, reason="for another reason, a moment before"))
    queue.resume(job)
    again = queue.begin(now=0.0)
    assert again is not None
    assert not queue.wants_stop(again)


def test_a_wish_that_a_crash_left_beside_an_ended_run_does_not_stop_the_resumed_one(queue: JobQueue) -> None:
    job = running(queue)
    queue.stop(job)
    queue.put(replace(job, state=JobState.STOPPED))  # killed before the wish was taken away
    again = queue.resume(queue.job("1"))
    assert not queue.wants_stop(again)


def test_stop_and_start_at_once_end_in_a_stopped_run_or_in_a_running_one_with_the_wish(tmp_path: Path) -> None:
    for number in range(30):
        queue = JobQueue(tmp_path / f"queue-{number}")
        job, begun = queue.submit(RUN, source="a"), list[Job | None]()
        line = threading.Barrier(2)

        def start(queue: JobQueue = queue, begun: list[Job | None] = begun, line: threading.Barrier = line) -> None:
            line.wait()
            begun.append(JobQueue(queue.path).begin(now=0.0))

        coordinator = threading.Thread(target=start)
        coordinator.start()
        line.wait()
        stopped = queue.stop(job)
        coordinator.join()
        (taken,) = begun
        assert queue.job("1") == (stopped if taken is None else taken)
        assert (taken is None) == (stopped.state is JobState.STOPPED)
        assert queue.wants_stop(job) == (taken is not None)


def test_a_decision_is_about_the_run_as_it_is_now_and_not_as_it_was_read(queue: JobQueue) -> None:
    waiting = queue.submit(RUN, source="a")
    begun = queue.begin(now=0.0)
    assert queue.stop(waiting) == begun  # it was waiting when the command read it
    assert queue.wants_stop(waiting)
    queue.end(replace(waiting, state=JobState.FINISHED))
    for decide in (queue.stop, queue.resume):
        with pytest.raises(ConfigInvalid, match="finished"):
            decide(waiting)


def test_a_stopped_run_is_resumed_with_its_directory_and_a_finished_one_is_not(queue: JobQueue) -> None:
    job = queue.stop(queue.submit(RUN, source="a"))
    assert job.state is JobState.STOPPED
    stopped = replace(job, run="20261122T001231Z-notes-7f3a")
    queue.put(stopped)
    assert queue.resume(queue.job(stopped.run)).run == stopped.run
    queue.put(replace(stopped, state=JobState.FINISHED))
    with pytest.raises(ConfigInvalid, match="finished"):
        queue.resume(queue.job("1"))
    with pytest.raises(ConfigInvalid, match="none called"):
        queue.job("7")


def test_a_damaged_job_is_named(queue: JobQueue) -> None:
    queue.put(Job(number=1, name="notes"))
    (queue.path / "0001.json").write_text("{")
    with pytest.raises(IntegrityFailed, match=r"0001\.json"):
        queue.jobs()


HOUR = 3600


def starts(queue: JobQueue, now: float) -> list[int]:
    """The numbers of the runs that begin now; each is done at once."""
    found = []
    while (job := queue.begin(now=now)) is not None:
        found.append(job.number)
        queue.end(replace(job, state=JobState.FINISHED))
    return found


def test_a_run_begins_at_its_time_and_not_before(queue: JobQueue) -> None:
    queue.submit(RUN, source="a", start_at=1000)
    queue.submit(RUN, source="b")
    assert starts(queue, 999.9) == [2]
    assert starts(queue, 1000.0) == [1]
    assert queue.successor(queue.job("1")) is None


def test_a_run_that_repeats_waits_once_and_begins_at_every_time_with_another_seed(queue: JobQueue) -> None:
    queue.submit(RUN, source="a", start_at=1000, every_s=HOUR, priority=7, group="wards", without=("ward-x",))
    seeds = []
    for turn in range(4):
        assert starts(queue, 1000 + turn * HOUR - 1) == []
        assert starts(queue, 1000 + turn * HOUR) == [turn + 1]
        (waiting,) = (job for job in queue.jobs() if job.state is JobState.QUEUED)
        assert (waiting.start_at, waiting.follows) == (1000 + (turn + 1) * HOUR, turn + 1)
        assert (waiting.priority, waiting.group, waiting.without) == (7, "wards", ("ward-x",))
        seeds.append(tomllib.loads(queue.text(waiting))["run"]["seed"])
    assert len(set(seeds)) == 4


def test_a_schedule_that_has_run_for_a_year_is_in_order_and_costs_no_more_reading(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are in order up to 9999; each look read every run that there ever was."""
    numbers = [*range(1, 40), 9998, 9999, 10_000, 10_001, 123_456]
    for number in numbers:
        state = [JobState.FINISHED, JobState.FAILED, JobState.STOPPED][number % 3]
        queue.put(Job(number=number, name="nightly", state=state, run=f"nightly-{number}", reason="as it ended"))
    assert [job.number for job in queue.jobs()] == numbers
    assert queue.submit(RUN, source="a").number == 123_457
    read: list[str] = []
    monkeypatch.setattr(
        Path, "read_text", lambda path, **_: read.append(path.name) or path.read_bytes().decode(), raising=True
    )
    assert starts(queue, 1000.0) == [123_457]
    assert set(read) == {"123457.json"}
    other = JobQueue(queue.path)  # a command, in a process of its own
    other.resume(other.job("9998"))
    assert queue.job("9998").state is JobState.QUEUED
    assert starts(queue, 1001.0) == [9998]


def test_starts_that_were_missed_happen_once(queue: JobQueue) -> None:
    queue.submit(RUN, source="a", start_at=1000, every_s=HOUR)
    late = 1000 + 5 * HOUR + 1800
    assert starts(queue, late) == [1]
    (waiting,) = (job for job in queue.jobs() if job.state is JobState.QUEUED)
    assert waiting.start_at == 1000 + 6 * HOUR


def test_a_crash_between_queueing_the_next_one_and_beginning_repeats_nothing(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.submit(RUN, source="a", start_at=1000, every_s=HOUR)
    put = JobQueue.put

    def crashing(self: JobQueue, job: Job) -> None:
        if job.state is JobState.RUNNING:
            raise OSError("killed")
        put(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "put", crashing)
        with pytest.raises(OSError, match="killed"):
            queue.begin(now=1000.0)
    assert starts(JobQueue(queue.path), 1000.0) == [1]
    assert [job.number for job in queue.jobs()] == [1, 2]


def test_stopping_the_run_that_waits_ends_the_repetition_and_resuming_one_that_ran_adds_none(queue: JobQueue) -> None:
    queue.submit(RUN, source="a", start_at=1000, every_s=HOUR)
    job = queue.begin(now=1000.0)
    assert job is not None
    queue.end(replace(job, state=JobState.STOPPED))
    queue.resume(queue.job("1"))
    assert starts(queue, 1001.0) == [1]
    assert len(queue.jobs()) == 2
    queue.stop(queue.job("2"))
    assert starts(queue, 1e9) == []


@pytest.mark.parametrize(("start_at", "every_s"), [(-1, 0), (LATEST + 1, 0), (0, 59), (0, 367 * 86_400), (0, -60)])
def test_times_that_cannot_be_meant_are_refused_and_nothing_is_queued(
    queue: JobQueue, start_at: int, every_s: int
) -> None:
    with pytest.raises(ConfigInvalid):
        queue.submit(RUN, source="a", start_at=start_at, every_s=every_s)
    assert queue.jobs() == ()


def test_every_time_that_is_taken_can_be_shown(queue: JobQueue) -> None:
    """`status` shows all that wait: one that it cannot show hid them all."""
    queue.submit(RUN, source="a", start_at=LATEST, every_s=LONGEST_EVERY_S)
    for job in queue.jobs():
        assert moment(job.start_at)
        assert moment(next_start(job.start_at, job.every_s, float(LATEST)))


@pytest.mark.parametrize("text", [b"", b"[run", b"\xff\xfe", b"run = 3", b"[[run]]", b"[base]"], ids=repr)
def test_a_damaged_file_of_a_run_that_repeats_begins_and_fails_by_itself(queue: JobQueue, text: bytes) -> None:
    """It ended the coordinator, at every start again."""
    queue.submit(RUN, source="a", start_at=1000, every_s=HOUR)
    queue.submit(RUN, source="b")
    (queue.path / "0001.toml").write_bytes(text)
    assert starts(queue, 1000.0) == [1, 2]
    assert len(queue.jobs()) == 2
    if text == b"\xff\xfe":
        with pytest.raises(IntegrityFailed, match=r"0001\.toml"):
            queue.text(queue.job("1"))
