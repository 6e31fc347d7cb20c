"""The queue of submitted runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid, IntegrityFailed
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState

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


def test_a_wish_to_stop_waits_for_the_coordinator_and_is_taken_away_when_granted(queue: JobQueue) -> None:
    job = replace(queue.submit(RUN, source="a"), state=JobState.RUNNING)
    queue.put(job)
    assert not queue.wants_stop(job)
    queue.stop(job)
    assert JobQueue(queue.path).wants_stop(job)
    queue.granted(job)
    assert not queue.wants_stop(job)


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
